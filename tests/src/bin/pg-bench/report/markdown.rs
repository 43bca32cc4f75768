//! The tables, as Markdown.

use std::fmt::Write as _;

use super::Report;
use super::goals::{Bound, goals};
use crate::proxies::Kind;
use crate::rounds::{Metric, Mode, Part, bare, ratios, values};
use crate::scale::{Axis, Quantity, fit};
use crate::stats::Spread;
use crate::tap;

/// A part of the report; empty where it was not measured.
pub struct Section {
    pub name: &'static str,
    pub title: &'static str,
    pub text: String,
}

/// All of them.
pub fn sections(report: &Report) -> Vec<Section> {
    let section = |name, title, text| Section { name, title, text };
    vec![
        section("machine", "Machine", machine(report)),
        section("summary", "In short", summary(report)),
        section("goals", "Goals", goals_table(report)),
        section(
            "read",
            "Read at saturation",
            reading(report, Metric::ReadRate, Metric::ReadCpu),
        ),
        section(
            "paced",
            "Read at 50,000 messages a second",
            reading(report, Metric::PacedRate, Metric::PacedCpu),
        ),
        section("calls", "Calls", calls(report)),
        section(
            "busy",
            "Calls with Read at saturation beside them",
            busy(report),
        ),
        section("memory", "Memory", memory(report)),
        section("programs", "The programs", programs(report)),
        section("tap", "System calls", tap_tables(report)),
        section("scale", "As the node grows", scale(report)),
        section("profile", "Where the time goes", profile(report)),
    ]
}

/// Functions whose share grows by less aren't told apart from chance.
const LEAST_SHARE: f64 = 0.1;

fn profile(report: &Report) -> String {
    let Some(profile) = &report.profile else {
        return String::new();
    };
    let rows: Vec<_> = profile
        .differences()
        .into_iter()
        .filter(|(_, bare, audit)| audit - bare >= LEAST_SHARE)
        .map(|(name, bare, audit)| {
            vec![
                format!("`{name}`"),
                number(bare, 2),
                number(audit, 2),
                number(audit - bare, 2),
            ]
        })
        .collect();
    table(&["function", "bare, %", "audit, %", "more"], &rows)
}

/// A document of nothing but these.
pub fn alone(sections: &[Section]) -> String {
    let mut text = String::from(
        "# Benchmark\n\nMade by `cargo xtask bench`; docs/performance.md says how it is measured.\n",
    );
    for section in sections.iter().filter(|section| !section.text.is_empty()) {
        // Writing to a string does not fail.
        let _ = write!(text, "\n## {}\n\n{}", section.title, section.text);
    }
    text
}

fn table(heads: &[&str], rows: &[Vec<String>]) -> String {
    if rows.is_empty() {
        return String::new();
    }
    let mut text = format!(
        "| {} |\n|{}\n",
        heads.join(" | "),
        "---|".repeat(heads.len())
    );
    for row in rows {
        let _ = writeln!(text, "| {} |", row.join(" | "));
    }
    text
}

/// A ratio and where half of the rounds lie.
fn ratio(spread: Option<Spread>) -> String {
    let Some(Spread {
        median, quartiles, ..
    }) = spread
    else {
        return "–".to_owned();
    };
    let (low, high) = quartiles;
    if median >= 10.0 {
        return format!("{median:.1} ({low:.1}–{high:.1})");
    }
    format!("{median:.3} ({low:.3}–{high:.3})")
}

/// A ratio alone.
fn short(spread: Option<Spread>) -> String {
    spread.map_or_else(|| "–".to_owned(), |spread| format!("{:.2}", spread.median))
}

/// A number with commas between thousands.
pub fn number(value: f64, digits: usize) -> String {
    let text = format!("{:.digits$}", value.abs());
    let (whole, rest) = text.split_at(text.find('.').unwrap_or(text.len()));
    let mut grouped = String::new();
    for (i, digit) in whole.chars().enumerate() {
        if i > 0 && (whole.len() - i).is_multiple_of(3) {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    let sign = if value < 0.0 { "−" } else { "" };
    format!("{sign}{grouped}{rest}")
}

fn median(spread: Option<Spread>, digits: usize) -> String {
    spread.map_or_else(|| "–".to_owned(), |spread| number(spread.median, digits))
}

fn mib(bytes: f64) -> String {
    format!("{:.1} MiB", bytes / f64::from(1 << 20))
}

fn machine(report: &Report) -> String {
    let Some(machine) = &report.machine else {
        return String::new();
    };
    let mut text = format!(
        "Linux {}, {} processors ({}), {:.0} GiB of memory.",
        machine.kernel,
        machine.processors,
        machine.processor,
        machine.memory_bytes as f64 / f64::from(1 << 30),
    );
    for (name, version) in &machine.versions {
        let _ = write!(text, " {name}: {version}.");
    }
    let rounds = |mode| report.samples.iter().filter(|s| s.mode == mode).count();
    let _ = write!(
        text,
        " {} rounds of Pendguard's modes, {} of the proxies.",
        rounds(Mode::Audit),
        rounds(Mode::Proxy(Kind::Envoy)),
    );
    if machine.quick {
        text += " Fewer and shorter rounds than a full run has (`--quick`).";
    }
    text + "\n"
}

/// Resident memory of a mode's processes.
fn resident(report: &Report, mode: Mode) -> Option<Spread> {
    let of_mode = report.samples.iter().filter(|sample| sample.mode == mode);
    Spread::of(
        of_mode
            .filter_map(|s| s.resident)
            .map(|r| r as f64)
            .collect(),
    )
}

/// Six lines for those who read no more.
fn summary(report: &Report) -> String {
    const LINES: [(Mode, &str); 6] = [
        (Mode::Audit, "Pendguard, audit"),
        (
            Mode::Gate,
            "Pendguard, gate (only connections that are rejected)",
        ),
        (
            Mode::Proxy(Kind::Relay),
            "a byte relay, which can do nothing",
        ),
        (Mode::Proxy(Kind::Envoy), "Envoy"),
        (Mode::Proxy(Kind::NginxTuned), "nginx, tuned"),
        (Mode::Proxy(Kind::HaproxyTuned), "HAProxy, tuned"),
    ];
    let measured = report.modes();
    if !LINES.iter().all(|(mode, _)| measured.contains(mode)) {
        return String::new();
    }
    let of = |mode, metric| short(ratios(&report.samples, mode, metric));
    let rows: Vec<_> = LINES
        .iter()
        .map(|(mode, name)| {
            let memory = resident(report, *mode).map_or_else(String::new, |r| mib(r.median));
            let per = if matches!(mode, Mode::Proxy(_)) {
                "pod"
            } else {
                "node"
            };
            vec![
                (*name).to_owned(),
                of(*mode, Metric::ReadRate),
                of(*mode, Metric::ReadCpu(Part::Whole)),
                of(*mode, Metric::PendingP50),
                of(*mode, Metric::RejectedRate),
                format!("{memory} a {per}"),
            ]
        })
        .collect();
    table(
        &[
            "of bare",
            "Read throughput",
            "CPU a message",
            "Pending p50",
            "rejected calls/s of admitted ones",
            "memory",
        ],
        &rows,
    )
}

fn goals_table(report: &Report) -> String {
    let goals = goals(report);
    if goals.iter().all(|goal| goal.measured.is_none()) {
        return String::new();
    }
    let rows: Vec<_> = goals
        .iter()
        .map(|goal| {
            let unit = goal.unit;
            let digits = if unit.is_empty() { 2 } else { 0 };
            let bound = match goal.bound {
                Bound::AtLeast(least) => format!("≥ {least:.digits$}{unit}"),
                Bound::AtMost(most) => format!("≤ {most:.digits$}{unit}"),
            };
            let measured = match goal.measured {
                Some(spread) if unit.is_empty() => ratio(Some(spread)),
                Some(spread) if spread.rounds == 1 => format!("{:.1}{unit}", spread.median),
                Some(spread) => {
                    let (low, high) = spread.quartiles;
                    format!("{:.0}{unit} ({low:.0} to {high:.0})", spread.median)
                }
                None => "–".to_owned(),
            };
            let what = goal.what.to_owned();
            vec![what, bound, measured, goal.verdict().to_owned()]
        })
        .collect();
    table(&["what", "goal", "measured", ""], &rows)
}

fn reading(report: &Report, rate: Metric, cpu: fn(Part) -> Metric) -> String {
    let samples = &report.samples;
    let Some(of_bare) = bare(samples, rate) else {
        return String::new();
    };
    let part = |spread: Option<Spread>| match spread {
        Some(spread) if spread.median >= 0.5 => number(spread.median, 0),
        Some(_) => "0".to_owned(),
        None => String::new(),
    };
    let mut rows = vec![];
    let mut first = vec!["bare".to_owned(), number(of_bare.median, 0), String::new()];
    first.extend(Part::EACH.map(|of| part(bare(samples, cpu(of)))));
    first.extend([median(bare(samples, cpu(Part::Whole)), 0), String::new()]);
    rows.push(first);
    for mode in report.modes() {
        let whole = cpu(Part::Whole);
        if values(samples, mode, rate).is_none() {
            continue;
        }
        let mut row = vec![
            mode.name().to_owned(),
            median(values(samples, mode, rate), 0),
            ratio(ratios(samples, mode, rate)),
        ];
        row.extend(Part::EACH.map(|of| part(values(samples, mode, cpu(of)))));
        row.push(median(values(samples, mode, whole), 0));
        row.push(ratio(ratios(samples, mode, whole)));
        rows.push(row);
    }
    table(
        &[
            "",
            "messages/s",
            "of bare",
            "client, ns",
            "source, ns",
            "proxy, ns",
            "agent, ns",
            "kernel threads, ns",
            "whole, ns a message",
            "of bare",
        ],
        &rows,
    )
}

fn calls(report: &Report) -> String {
    let samples = &report.samples;
    let Some(p50) = bare(samples, Metric::PendingP50) else {
        return String::new();
    };
    let mut rows = vec![vec![
        "bare".to_owned(),
        number(p50.median, 1),
        String::new(),
        median(bare(samples, Metric::PendingP99), 1),
        String::new(),
        median(bare(samples, Metric::PendingRateOf16), 0),
        String::new(),
        // The source's own answer to a method that it doesn't have.
        median(bare(samples, Metric::RejectedRate), 0),
        match (
            bare(samples, Metric::RejectedRate),
            bare(samples, Metric::PendingRate),
        ) {
            (Some(own), Some(admitted)) => format!("{:.3}", own.median / admitted.median),
            _ => String::new(),
        },
    ]];
    for mode in report.modes() {
        let value = |metric, digits| median(values(samples, mode, metric), digits);
        let of = |metric| ratio(ratios(samples, mode, metric));
        rows.push(vec![
            mode.name().to_owned(),
            value(Metric::PendingP50, 1),
            of(Metric::PendingP50),
            value(Metric::PendingP99, 1),
            of(Metric::PendingP99),
            value(Metric::PendingRateOf16, 0),
            of(Metric::PendingRateOf16),
            value(Metric::RejectedRate, 0),
            of(Metric::RejectedRate),
        ]);
    }
    table(
        &[
            "",
            "p50, µs",
            "of bare",
            "p99, µs",
            "of bare",
            "calls/s, 16 at a time",
            "of bare",
            "rejected calls/s",
            "of bare admitted ones",
        ],
        &rows,
    )
}

fn busy(report: &Report) -> String {
    let samples = &report.samples;
    let Some(rate) = bare(samples, Metric::BusyPendingRate) else {
        return String::new();
    };
    let mut rows = vec![vec![
        "bare".to_owned(),
        number(rate.median, 0),
        String::new(),
        String::new(),
        median(bare(samples, Metric::BusyRejectedRate), 0),
        String::new(),
        String::new(),
    ]];
    for mode in report.modes() {
        let value = |metric| median(values(samples, mode, metric), 0);
        let of = |metric| ratio(ratios(samples, mode, metric));
        rows.push(vec![
            mode.name().to_owned(),
            value(Metric::BusyPendingRate),
            of(Metric::BusyPendingRate),
            of(Metric::BusyPendingRead),
            value(Metric::BusyRejectedRate),
            of(Metric::BusyRejectedRate),
            of(Metric::BusyRejectedRead),
        ]);
    }
    table(
        &[
            "",
            "admitted calls/s",
            "of bare",
            "Read meanwhile, of bare",
            "rejected calls/s",
            "of bare admitted ones",
            "Read meanwhile, of bare",
        ],
        &rows,
    )
}

fn memory(report: &Report) -> String {
    let rows: Vec<_> = report
        .modes()
        .into_iter()
        .filter_map(|mode| {
            let resident = resident(report, mode)?;
            let whose = if matches!(mode, Mode::Proxy(_)) {
                "a pod"
            } else {
                "a node, with one pod on it"
            };
            Some(vec![
                mode.name().to_owned(),
                mib(resident.median),
                whose.to_owned(),
            ])
        })
        .collect();
    table(&["", "resident", "for"], &rows)
}

fn programs(report: &Report) -> String {
    let mut rows = Vec::new();
    for mode in report.modes() {
        let of_mode: Vec<_> = report.samples.iter().filter(|s| s.mode == mode).collect();
        let names: std::collections::BTreeSet<_> =
            of_mode.iter().flat_map(|s| s.programs.keys()).collect();
        for name in names {
            let times = of_mode.iter().filter_map(|s| s.programs.get(name).copied());
            if let Some(spread) = Spread::of(times.collect())
                && spread.median >= 0.05
            {
                rows.push(vec![
                    mode.name().to_owned(),
                    format!("`{name}`"),
                    format!("{:.1}", spread.median),
                ]);
            }
        }
    }
    table(&["", "program", "ns a message"], &rows)
}

fn tap_tables(report: &Report) -> String {
    let Some(report) = &report.tap else {
        return String::new();
    };
    let costs: Vec<_> = report
        .costs
        .iter()
        .map(|cost| {
            vec![
                cost.kind.describe().to_owned(),
                tap::process(cost.watched).to_owned(),
                number(cost.ns_per_call, 0),
            ]
        })
        .collect();
    let taxes: Vec<_> = report
        .taxes
        .iter()
        .map(|tax| {
            let (low, high) = tax.above_empty_ns.quartiles;
            vec![
                tax.kind.describe().to_owned(),
                tap::process(tax.watched).to_owned(),
                number(tax.ns_bare, 0),
                ratio(Some(tax.with)),
                ratio(Some(tax.no_answers)),
                ratio(Some(tax.empty)),
                format!("{:.0} ({low:.0} to {high:.0})", tax.above_empty_ns.median),
            ]
        })
        .collect();
    format!(
        "{}\n{}",
        table(&["system call", "process", "ns in programs"], &costs),
        table(
            &[
                "system call",
                "process",
                "bare, ns",
                "agent, of bare",
                "`--no-answers`, of bare",
                "empty programs, of bare",
                "agent above empty programs, ns",
            ],
            &taxes,
        )
    )
}

/// What is fitted, and how its slope and its intercept are written.
const FITTED: [(Quantity, &str); 3] = [
    (Quantity::Resident, "MiB"),
    (Quantity::Cpu, "ms/s"),
    (Quantity::Scrape, "ms"),
];

fn scale(report: &Report) -> String {
    let points = &report.scale;
    if points.is_empty() {
        return String::new();
    }
    let optional = |value: Option<f64>| value.map_or_else(String::new, |v| number(v, 0));
    let rows: Vec<_> = points
        .iter()
        .map(|point| {
            vec![
                point.axis.name().to_owned(),
                number(point.x, 0),
                format!("{:.1}", point.of(Quantity::Resident)),
                format!("{:.2}", point.cpu_ms),
                optional(point.programs_ns),
                format!("{:.2}", point.scrape_ms.median),
                number(point.scrape_bytes / 1024.0, 0),
                point
                    .watched_ms
                    .map_or_else(String::new, |spread| format!("{:.0}", spread.median)),
            ]
        })
        .collect();
    let mut lines = Vec::new();
    for axis in [Axis::Pods, Axis::Connections, Axis::Calls, Axis::Writes] {
        for (quantity, unit) in FITTED {
            if let Some(line) = fit(points, axis, quantity) {
                let what = match quantity {
                    Quantity::Resident => "memory",
                    Quantity::Cpu => "CPU time",
                    Quantity::Scrape => "a scrape",
                };
                lines.push(vec![
                    axis.name().to_owned(),
                    format!("{what}, {unit}"),
                    format!("{:.2}", line.intercept),
                    format!("{:.3}", line.slope * 1000.0),
                    format!("{:.2}", line.r2),
                ]);
            }
        }
    }
    format!(
        "{}\n{}",
        table(
            &[
                "what grows",
                "",
                "memory, MiB",
                "CPU, ms/s",
                "programs, ns each",
                "a scrape, ms",
                "KiB",
                "pod's start until watched, ms",
            ],
            &rows,
        ),
        table(
            &["what grows", "line of", "at 0", "for 1,000 more", "r²"],
            &lines,
        )
    )
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::rounds::Sample;

    fn report() -> Report {
        let mut samples = Vec::new();
        for mode in Mode::all() {
            for round in 0..3 {
                let measures = |factor: f64| {
                    BTreeMap::from([
                        (Metric::ReadRate, 1_234_567.0 * factor),
                        (Metric::ReadCpu(Part::Client), 800.0),
                        (Metric::ReadCpu(Part::Whole), 1500.0 / factor),
                        (Metric::PendingP50, 33.0 / factor),
                        (Metric::PendingRate, 30_000.0 * factor),
                        (Metric::RejectedRate, 27_000.0 * factor),
                    ])
                };
                samples.push(Sample {
                    round,
                    mode,
                    before: measures(1.0),
                    with: measures(0.5),
                    after: measures(1.0),
                    resident: Some(10 << 20),
                    programs: BTreeMap::from([("tap_writev".to_owned(), 12.34)]),
                });
            }
        }
        Report {
            samples,
            ..Report::default()
        }
    }

    #[test]
    fn numbers_are_grouped() {
        assert_eq!(number(1_234_567.4, 0), "1,234,567");
        assert_eq!(number(999.0, 1), "999.0");
        assert_eq!(number(-1000.0, 0), "−1,000");
        assert_eq!(number(0.0, 0), "0");
    }

    #[test]
    fn every_row_of_a_table_has_every_column() {
        for section in sections(&report()) {
            let columns = |line: &str| line.matches('|').count();
            for rows in section.text.split("\n\n") {
                let mut lines = rows.lines().filter(|line| line.starts_with('|'));
                let Some(first) = lines.next() else { continue };
                for line in lines {
                    assert_eq!(columns(line), columns(first), "{}: {line}", section.name);
                }
            }
        }
    }

    #[test]
    fn the_summary_has_six_lines_of_real_ratios() {
        let sections = sections(&report());
        let of = |name| &sections.iter().find(|s| s.name == name).unwrap().text;
        assert_eq!(of("summary").lines().count(), 2 + 6);
        assert!(
            of("summary")
                .contains("| Pendguard, audit | 0.50 | 2.00 | 2.00 | 0.45 | 10.0 MiB a node |")
        );
        assert!(of("read").contains("| bare | 1,234,567 |"));
        assert!(of("goals").contains("**missed**"));
        assert!(of("scale").is_empty() && of("tap").is_empty());
    }

    #[test]
    fn nothing_measured_is_nothing_written() {
        for section in sections(&Report::default()) {
            assert!(section.text.is_empty(), "{}", section.name);
        }
        assert!(!alone(&sections(&report())).is_empty());
    }
}
