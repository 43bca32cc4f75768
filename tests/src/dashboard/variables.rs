//! What the user of the dashboard chooses: where the data comes from, and of which workloads.

/// A choice among the values of a label.
#[derive(Debug)]
pub struct Label {
    /// The label, which is also the variable's name.
    pub name: &'static str,
    /// The variable's title.
    pub title: &'static str,
    /// The series whose label it is.
    pub series: &'static str,
}

/// The choices, in their order: a later one may use the earlier ones.
pub const LABELS: &[Label] = &[
    Label {
        name: "namespace",
        title: "Namespace",
        series: "pendguard_calls_total",
    },
    Label {
        name: "workload",
        title: "Workload",
        series: r#"pendguard_calls_total{namespace=~"$namespace"}"#,
    },
];

impl Label {
    /// The query in the form that Grafana's Prometheus data source takes.
    #[must_use]
    pub fn query(&self) -> String {
        format!("label_values({}, {})", self.series, self.name)
    }
}

/// What a choice of everything is replaced by.
pub const ALL: &str = ".*";

/// An expression as Prometheus gets it when everything is chosen and rates are taken over `window`.
#[must_use]
pub fn fill_in(expression: &str, window: &str) -> String {
    let mut filled = expression.replace("$__rate_interval", window);
    for label in LABELS {
        filled = filled.replace(&format!("${}", label.name), ALL);
    }
    filled
}
