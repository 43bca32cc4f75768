//! What a panel is, whoever draws it.

/// Panels that belong together, below a title.
#[derive(Debug)]
pub struct Row {
    /// Their title.
    pub title: &'static str,
    /// They flow from left to right, and on below where they would be wider than 24 columns.
    pub panels: &'static [Panel],
}

/// One panel.
#[derive(Debug)]
pub struct Panel {
    /// A few words.
    pub title: &'static str,
    /// What it shows, and what to make of it: whole sentences for somebody who was woken up.
    pub description: &'static str,
    /// How it is drawn.
    pub kind: Kind,
    /// What its values are.
    pub unit: Unit,
    /// What it asks.
    pub queries: &'static [Query],
    /// Columns of Grafana's 24, and rows.
    pub size: (u8, u8),
}

/// How a panel is drawn.
#[derive(Clone, Copy, Debug)]
pub enum Kind {
    /// The values of now as numbers.
    Stat {
        /// What it says where there is no value.
        empty: &'static str,
        /// From what value on it has a colour other than green.
        alarm: Option<(f64, &'static str)>,
    },
    /// The values of now as the names of their series.
    Names,
    /// A line for each series.
    Lines,
    /// The same on top of each other: the sum is of interest, too.
    Stacked,
    /// A line of coloured cells for each series.
    Cells,
    /// The buckets of a histogram, coloured by how much is in them.
    HeatMap,
    /// The values of now, a column for each query, a line for each workload.
    Table,
}

impl Kind {
    /// Whether it shows how things were, and not only how they are.
    #[must_use]
    pub const fn over_time(self) -> bool {
        matches!(
            self,
            Self::Lines | Self::Stacked | Self::Cells | Self::HeatMap
        )
    }
}

/// What the values are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    /// Of anything.
    Count,
    /// Calls in an hour.
    CallsPerHour,
    /// Calls in a minute.
    CallsPerMinute,
    /// Calls in a second.
    CallsPerSecond,
    /// Of anything, in a second.
    PerSecond,
    /// A time.
    Seconds,
    /// A time in each hour.
    SecondsPerHour,
    /// From 0 to 1.
    Share,
}

impl Unit {
    /// What Grafana calls it.
    #[must_use]
    pub const fn grafana(self) -> &'static str {
        match self {
            Self::Count => "short",
            Self::CallsPerHour => "suffix: calls/h",
            Self::CallsPerMinute => "suffix: calls/min",
            Self::CallsPerSecond => "suffix: calls/s",
            Self::PerSecond => "suffix: /s",
            // Grafana has no time per hour; the panels' titles say it.
            Self::Seconds | Self::SecondsPerHour => "s",
            Self::Share => "percentunit",
        }
    }
}

/// One question to Prometheus.
#[derive(Debug)]
pub struct Query {
    /// PromQL, in which `<of>` stands for the choice of workloads: see [`Self::expression`].
    pub template: &'static str,
    /// The name of each series, with its labels in double braces; of a table, that of the column.
    pub legend: &'static str,
    /// Of a table's column, if it has another unit than the panel.
    pub unit: Option<Unit>,
}

/// The workloads that the user chose.
const OF: &str = r#"namespace=~"$namespace",workload=~"$workload""#;

impl Query {
    /// A query.
    #[must_use]
    pub const fn new(template: &'static str, legend: &'static str) -> Self {
        Self {
            template,
            legend,
            unit: None,
        }
    }

    /// The same with a unit of its own.
    #[must_use]
    pub const fn unit(self, unit: Unit) -> Self {
        Self {
            unit: Some(unit),
            ..self
        }
    }

    /// What Grafana asks, with its variables.
    #[must_use]
    pub fn expression(&self) -> String {
        self.template.replace("<of>", OF)
    }
}
