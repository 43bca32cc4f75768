//! As much of PromQL as it takes to see what an expression is about.

/// The series that an expression asks for, each as often as it is named: Pendguard's own, recorded ones, and `up`.
///
/// ```
/// use pendguard_tests::promql::series;
/// let expression = r#"sum by (job) (up{job=~".*pendguard.*"}) or workload:pendguard_calls:rate5m"#;
/// assert_eq!(series(expression), ["up", "workload:pendguard_calls:rate5m"]);
/// ```
#[must_use]
pub fn series(expression: &str) -> Vec<&str> {
    // What is in quotes is a label's value.
    expression
        .split('"')
        .step_by(2)
        .flat_map(|part| part.split(|c: char| !(c.is_ascii_alphanumeric() || "_:".contains(c))))
        .filter(|name| *name == "up" || name.contains("pendguard_"))
        .collect()
}
