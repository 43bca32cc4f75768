//! The dashboard in Grafana's own terms, as versions 10 and 11 import it.
//!
//! The types have what Pendguard's panels use. Everything else Grafana fills in by itself when it reads a dashboard, and brings it to its
//! own version of the schema.

use serde::Serialize;
use serde_json::{Value, json};

use super::panel::{Kind, Panel, Query, Row, Unit};
use super::rows::ROWS;
use super::variables::{ALL, LABELS, Label};

/// The schema of Grafana 10.1; later ones read it.
const SCHEMA_VERSION: u32 = 38;
/// Columns that a dashboard has.
pub const GRID_WIDTH: u8 = 24;
/// The source that the user chose.
const SOURCE: DataSource = DataSource {
    kind: "prometheus",
    uid: "${datasource}",
};
/// Cells of one line that can still be told from each other; Grafana refuses to draw more than there are pixels.
const CELLS: u32 = 100;

/// A dashboard.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Dashboard {
    annotations: List<()>,
    description: &'static str,
    editable: bool,
    graph_tooltip: u8,
    id: Option<u64>,
    links: Vec<()>,
    /// Titles of rows, and panels.
    pub panels: Vec<Item>,
    refresh: &'static str,
    schema_version: u32,
    tags: [&'static str; 2],
    templating: List<Variable>,
    time: Range,
    timezone: &'static str,
    title: &'static str,
    uid: &'static str,
    version: u32,
}

#[derive(Debug, Serialize)]
struct List<T> {
    list: Vec<T>,
}

#[derive(Debug, Serialize)]
struct Range {
    from: &'static str,
    to: &'static str,
}

#[derive(Clone, Copy, Debug, Serialize)]
struct DataSource {
    #[serde(rename = "type")]
    kind: &'static str,
    uid: &'static str,
}

/// Something that the user chooses.
#[derive(Debug, Serialize)]
#[serde(tag = "type", rename_all = "lowercase")]
enum Variable {
    #[serde(rename_all = "camelCase")]
    DataSource {
        name: &'static str,
        label: &'static str,
        query: &'static str,
        refresh: u8,
        hide: u8,
        include_all: bool,
        multi: bool,
        regex: &'static str,
        options: Vec<()>,
        current: Current,
    },
    #[serde(rename_all = "camelCase")]
    Query {
        name: &'static str,
        label: &'static str,
        datasource: DataSource,
        definition: String,
        query: VariableQuery,
        refresh: u8,
        sort: u8,
        hide: u8,
        include_all: bool,
        all_value: &'static str,
        multi: bool,
        regex: &'static str,
        options: Vec<()>,
        current: Current,
    },
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct VariableQuery {
    query: String,
    ref_id: &'static str,
}

/// What is chosen to begin with.
#[derive(Debug, Default, Serialize)]
struct Current {
    #[serde(skip_serializing_if = "Option::is_none")]
    selected: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    text: Option<[&'static str; 1]>,
    #[serde(skip_serializing_if = "Option::is_none")]
    value: Option<[&'static str; 1]>,
}

/// What is placed on the grid.
#[derive(Debug, Serialize)]
#[serde(untagged)]
pub enum Item {
    /// The title of a row.
    Title(Title),
    /// A panel.
    Panel(Box<PanelItem>),
}

impl Item {
    /// Its place.
    #[must_use]
    pub fn grid_pos(&self) -> GridPos {
        match self {
            Self::Title(title) => title.grid_pos,
            Self::Panel(panel) => panel.grid_pos,
        }
    }
}

/// The title of a row.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Title {
    id: usize,
    #[serde(rename = "type")]
    kind: &'static str,
    title: &'static str,
    collapsed: bool,
    grid_pos: GridPos,
    panels: Vec<()>,
}

/// A panel.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PanelItem {
    id: usize,
    #[serde(rename = "type")]
    kind: &'static str,
    title: &'static str,
    description: String,
    datasource: DataSource,
    grid_pos: GridPos,
    #[serde(skip_serializing_if = "Option::is_none")]
    max_data_points: Option<u32>,
    targets: Vec<Target>,
    field_config: FieldConfig,
    options: Value,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    transformations: Vec<Transformation>,
}

/// A place on the grid.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct GridPos {
    /// Its columns.
    pub w: u8,
    /// Its height.
    pub h: u16,
    /// The first column.
    pub x: u8,
    /// From the top.
    pub y: u16,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Target {
    ref_id: String,
    datasource: DataSource,
    editor_mode: &'static str,
    expr: String,
    legend_format: &'static str,
    format: &'static str,
    instant: bool,
    range: bool,
}

#[derive(Debug, Serialize)]
struct FieldConfig {
    defaults: Defaults,
    overrides: Vec<Override>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Defaults {
    unit: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    no_value: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    min: Option<u8>,
    #[serde(skip_serializing_if = "Option::is_none")]
    max: Option<u8>,
    color: Value,
    thresholds: Thresholds,
    custom: Value,
}

#[derive(Debug, Serialize)]
struct Thresholds {
    mode: &'static str,
    steps: Vec<Step>,
}

#[derive(Debug, Serialize)]
struct Step {
    color: &'static str,
    value: Option<f64>,
}

/// Other settings for one column.
#[derive(Debug, Serialize)]
struct Override {
    matcher: Setting<&'static str>,
    properties: Vec<Property>,
}

#[derive(Debug, Serialize)]
struct Property {
    id: &'static str,
    value: &'static str,
}

#[derive(Debug, Serialize)]
struct Setting<T> {
    id: &'static str,
    options: T,
}

type Transformation = Setting<Value>;

/// The dashboard that is shipped.
#[must_use]
pub fn dashboard() -> Dashboard {
    Dashboard {
        annotations: List { list: Vec::new() },
        description: "Who asks Numaflow sources how much is pending, what it costs, and what Pendguard keeps from them. Needs the recording rules in \
                      deploy/prometheus/rules.yaml.",
        editable: true,
        // One crosshair for all panels: what happens at a switch of modes is seen in all of them.
        graph_tooltip: 1,
        id: None,
        links: Vec::new(),
        panels: items(ROWS),
        refresh: "30s",
        schema_version: SCHEMA_VERSION,
        tags: ["numaflow", "pendguard"],
        templating: List { list: variables() },
        time: Range {
            from: "now-6h",
            to: "now",
        },
        timezone: "",
        title: "Pendguard",
        uid: "pendguard",
        version: 1,
    }
}

fn variables() -> Vec<Variable> {
    let source = Variable::DataSource {
        name: "datasource",
        label: "Data source",
        query: "prometheus",
        refresh: 1,
        hide: 0,
        include_all: false,
        multi: false,
        regex: "",
        options: Vec::new(),
        current: Current::default(),
    };
    std::iter::once(source)
        .chain(LABELS.iter().map(label))
        .collect()
}

fn label(label: &Label) -> Variable {
    Variable::Query {
        name: label.name,
        label: label.title,
        datasource: SOURCE,
        definition: label.query(),
        query: VariableQuery {
            query: label.query(),
            ref_id: "PrometheusVariableQueryEditor-VariableQuery",
        },
        // Whenever the time range changes: workloads come and go.
        refresh: 2,
        sort: 1,
        hide: 0,
        include_all: true,
        all_value: ALL,
        multi: true,
        regex: "",
        options: Vec::new(),
        current: Current {
            selected: Some(true),
            text: Some(["All"]),
            value: Some(["$__all"]),
        },
    }
}

/// The rows, one below the other.
fn items(rows: &[Row]) -> Vec<Item> {
    let mut items = Vec::new();
    let mut grid = Grid::default();
    for row in rows {
        items.push(Item::Title(Title {
            id: items.len() + 1,
            kind: "row",
            title: row.title,
            collapsed: false,
            grid_pos: grid.below(),
            panels: Vec::new(),
        }));
        for panel in row.panels {
            let place = grid.place(panel.size);
            items.push(Item::Panel(Box::new(item(items.len() + 1, panel, place))));
        }
    }
    items
}

/// How far down each column is taken.
#[derive(Default)]
struct Grid([u16; GRID_WIDTH as usize]);

impl Grid {
    /// The highest place for a panel, and of these the leftmost.
    fn place(&mut self, (w, h): (u8, u8)) -> GridPos {
        let h = u16::from(h);
        let top = |x: u8| {
            let columns = &self.0[usize::from(x)..usize::from(x + w)];
            columns.iter().copied().max().unwrap_or(0)
        };
        let (y, x) = (0..=GRID_WIDTH - w)
            .map(|x| (top(x), x))
            .min()
            .unwrap_or_default();
        self.0[usize::from(x)..usize::from(x + w)].fill(y + h);
        GridPos { w, h, x, y }
    }

    /// A line of its own below everything.
    fn below(&mut self) -> GridPos {
        self.place((GRID_WIDTH, 1))
    }
}

fn item(id: usize, panel: &Panel, grid_pos: GridPos) -> PanelItem {
    PanelItem {
        id,
        kind: kind(panel.kind),
        title: panel.title,
        description: panel.description.to_owned(),
        datasource: SOURCE,
        grid_pos,
        max_data_points: matches!(panel.kind, Kind::Cells | Kind::HeatMap).then_some(CELLS),
        targets: panel
            .queries
            .iter()
            .zip(b'A'..)
            .map(|(query, letter)| target(panel.kind, query, letter))
            .collect(),
        field_config: FieldConfig {
            defaults: defaults(panel),
            overrides: overrides(panel),
        },
        options: options(panel),
        transformations: transformations(panel),
    }
}

const fn kind(kind: Kind) -> &'static str {
    match kind {
        Kind::Stat { .. } | Kind::Names => "stat",
        Kind::Lines | Kind::Stacked => "timeseries",
        Kind::Cells => "status-history",
        Kind::HeatMap => "heatmap",
        Kind::Table => "table",
    }
}

fn target(kind: Kind, query: &Query, letter: u8) -> Target {
    Target {
        ref_id: char::from(letter).to_string(),
        datasource: SOURCE,
        editor_mode: "code",
        expr: query.expression(),
        legend_format: query.legend,
        format: match kind {
            Kind::HeatMap => "heatmap",
            Kind::Table => "table",
            _ => "time_series",
        },
        instant: !kind.over_time(),
        range: kind.over_time(),
    }
}

fn defaults(panel: &Panel) -> Defaults {
    let mut steps = vec![Step {
        color: "green",
        value: None,
    }];
    let mut no_value = None;
    if let Kind::Stat { empty, alarm } = panel.kind {
        no_value = Some(empty);
        steps.extend(alarm.map(|(value, color)| Step {
            color,
            value: Some(value),
        }));
    }
    let (color, custom) = match panel.kind {
        Kind::Stat { .. } => (json!({"mode": "thresholds"}), json!({})),
        Kind::Names => (json!({"mode": "fixed", "fixedColor": "text"}), json!({})),
        Kind::Lines => (json!({"mode": "palette-classic"}), lines(10, "none")),
        Kind::Stacked => (json!({"mode": "palette-classic"}), lines(60, "normal")),
        Kind::Cells => (
            json!({"mode": "continuous-YlRd"}),
            json!({"fillOpacity": 80, "lineWidth": 0}),
        ),
        Kind::HeatMap => (
            json!({"mode": "thresholds"}),
            json!({"scaleDistribution": {"type": "linear"}}),
        ),
        Kind::Table => (
            json!({"mode": "thresholds"}),
            json!({"align": "auto", "cellOptions": {"type": "auto"}, "inspect": false}),
        ),
    };
    let share = panel.unit == Unit::Share;
    Defaults {
        unit: panel.unit.grafana(),
        no_value,
        // Counts and rates; but a source's answer may be negative, and the CPU's share is nowhere near 1.
        min: (panel.unit != Unit::Count).then_some(0),
        max: (share && matches!(panel.kind, Kind::Lines)).then_some(1),
        color,
        thresholds: Thresholds {
            mode: "absolute",
            steps,
        },
        custom,
    }
}

fn lines(fill: u8, stacking: &str) -> Value {
    json!({
        "drawStyle": "line",
        "lineInterpolation": "linear",
        "lineWidth": 1,
        "fillOpacity": fill,
        "showPoints": "never",
        "spanNulls": false,
        "axisPlacement": "auto",
        "stacking": {"mode": stacking, "group": "A"},
    })
}

fn options(panel: &Panel) -> Value {
    match panel.kind {
        Kind::Stat { .. } | Kind::Names => json!({
            "reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": false},
            "orientation": "auto",
            "textMode": if panel.queries.iter().any(|query| !query.legend.is_empty()) { "value_and_name" } else { "value" },
            "colorMode": "value",
            "graphMode": "none",
            "justifyMode": "auto",
        }),
        Kind::Lines | Kind::Stacked => json!({
            "legend": {"showLegend": true, "displayMode": "table", "placement": "bottom", "calcs": ["lastNotNull", "max"]},
            "tooltip": {"mode": "multi", "sort": "desc"},
        }),
        Kind::Cells => json!({
            "colWidth": 1,
            "rowHeight": 0.9,
            "showValue": "never",
            "legend": {"showLegend": false, "displayMode": "list", "placement": "bottom"},
            "tooltip": {"mode": "single", "sort": "none"},
        }),
        Kind::HeatMap => json!({
            "calculate": false,
            "cellGap": 1,
            "color": {"mode": "scheme", "scheme": "Oranges", "scale": "exponential", "exponent": 0.5, "steps": 64, "reverse": false},
            "filterValues": {"le": 1e-9},
            "rowsFrame": {"layout": "auto"},
            "legend": {"show": true},
            "showValue": "never",
            "tooltip": {"mode": "single", "show": true, "yHistogram": false},
            "yAxis": {"axisPlacement": "left", "reverse": false, "unit": panel.unit.grafana()},
        }),
        Kind::Table => json!({
            "showHeader": true,
            "cellHeight": "sm",
            "footer": {"show": false, "reducer": ["sum"], "countRows": false, "fields": ""},
            "sortBy": [],
        }),
    }
}

/// Columns of another unit than the panel's.
fn overrides(panel: &Panel) -> Vec<Override> {
    let own = |query: &Query| {
        Some(Override {
            matcher: Setting {
                id: "byName",
                options: query.legend,
            },
            properties: vec![Property {
                id: "unit",
                value: query.unit?.grafana(),
            }],
        })
    };
    panel.queries.iter().filter_map(own).collect()
}

/// A table's answers are put side by side, under the names of their queries.
fn transformations(panel: &Panel) -> Vec<Transformation> {
    if !matches!(panel.kind, Kind::Table) {
        return Vec::new();
    }
    let names: serde_json::Map<_, _> = panel
        .queries
        .iter()
        .zip('A'..)
        .map(|(query, letter)| (format!("Value #{letter}"), query.legend.into()))
        .collect();
    vec![
        Setting {
            id: "merge",
            options: json!({}),
        },
        Setting {
            id: "organize",
            options: json!({"excludeByName": {"Time": true}, "indexByName": {}, "renameByName": names}),
        },
    ]
}
