//! What `pendguard top` knows, and what answers and keys make of it. Nothing here touches a terminal or a clock.
#![forbid(unsafe_code)]

use std::cmp::Ordering;
use std::collections::HashMap;
use std::time::{Duration, Instant};

use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyModifiers};

use super::super::report::{ADMITTED, MapFill, REJECTED, Replica, Report, WOULD_REJECT};
use super::super::savings::{self, Saving};
use super::super::{clean, workload};
use crate::durations::Durations;

/// Characters of a filter at most: no name is longer than a namespace, a workload and a pod together.
const FILTER: usize = 256;

/// What a key comes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// Go on, with a new picture.
    Draw,
    /// It is over.
    Quit,
}

/// A column that can be sorted by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Column {
    Workload,
    Replica,
    Mode,
    Rate,
    Admitted,
    WouldReject,
    Rejected,
    Unresolved,
    P50,
    P99,
    Pending,
    Codes,
}

impl Column {
    /// In the order in which they are shown.
    pub const ALL: [Self; 12] = [
        Self::Workload,
        Self::Replica,
        Self::Mode,
        Self::Rate,
        Self::Admitted,
        Self::WouldReject,
        Self::Rejected,
        Self::Unresolved,
        Self::P50,
        Self::P99,
        Self::Pending,
        Self::Codes,
    ];

    /// Its heading.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Workload => "WORKLOAD",
            Self::Replica => "REPL",
            Self::Mode => "MODE",
            Self::Rate => "CALL/S",
            Self::Admitted => "ADMIT",
            Self::WouldReject => "WOULD",
            Self::Rejected => "REJECT",
            Self::Unresolved => "UNRES",
            Self::P50 => "P50",
            Self::P99 => "P99",
            Self::Pending => "PENDING",
            Self::Codes => "NOT OK",
        }
    }

    /// Names go from the first on, numbers from the largest on.
    const fn descends(self) -> bool {
        !matches!(self, Self::Workload | Self::Replica | Self::Mode)
    }

    fn step(self, forward: bool) -> Self {
        let all = Self::ALL;
        let at = all.iter().position(|&column| column == self).unwrap_or(0);
        let to = if forward { at + 1 } else { at + all.len() - 1 };
        all[to % all.len()]
    }
}

/// A replica as it is shown.
#[derive(Clone, Debug)]
pub struct Row {
    pub workload: String,
    pub replica: Option<u32>,
    pub mode: &'static str,
    /// Calls a second in the last interval; `None` before there was one.
    pub rate: Option<f64>,
    pub admitted: u64,
    pub would_reject: u64,
    pub rejected: u64,
    pub unresolved: u64,
    pub p50: Option<Duration>,
    pub p99: Option<Duration>,
    /// Whether these are of the last interval, not of all time.
    pub recent: bool,
    pub pending: Option<i64>,
    /// How calls ended that didn't end well.
    pub codes: String,
    pub pod: String,
    pub gone: bool,
}

impl Row {
    fn has(&self, text: &str) -> bool {
        let replica = self.replica.map_or("unknown".to_owned(), |n| n.to_string());
        [&*self.workload, &*self.pod, self.mode, &*self.codes]
            .iter()
            .any(|field| field.to_lowercase().contains(text))
            || replica == text
    }

    /// Of two, by a column from the smallest on; what isn't known is smallest.
    fn compare(&self, other: &Self, column: Column) -> Ordering {
        match column {
            Column::Workload => self.workload.cmp(&other.workload),
            // Unknown ones come last.
            Column::Replica => (self.replica.is_none(), self.replica)
                .cmp(&(other.replica.is_none(), other.replica)),
            Column::Mode => self.mode.cmp(other.mode),
            Column::Rate => self
                .rate
                .unwrap_or(-1.0)
                .total_cmp(&other.rate.unwrap_or(-1.0)),
            Column::Admitted => self.admitted.cmp(&other.admitted),
            Column::WouldReject => self.would_reject.cmp(&other.would_reject),
            Column::Rejected => self.rejected.cmp(&other.rejected),
            Column::Unresolved => self.unresolved.cmp(&other.unresolved),
            Column::P50 => self.p50.cmp(&other.p50),
            Column::P99 => self.p99.cmp(&other.p99),
            Column::Pending => self.pending.cmp(&other.pending),
            Column::Codes => self.codes.cmp(&other.codes),
        }
    }
}

/// The agent and its totals, as they are shown.
#[derive(Clone, Debug)]
pub struct Head {
    pub version: String,
    pub mode: &'static str,
    pub tap: String,
    pub enforcer: String,
    pub uptime: Duration,
    pub pid: u32,
    pub replicas: usize,
    pub gone: usize,
    /// Of all replicas, in the last interval.
    pub rate: Option<f64>,
    pub admitted: u64,
    pub would_reject: u64,
    pub rejected: u64,
    pub unresolved: u64,
    pub would_save: Option<Saving>,
    pub saves: Option<Saving>,
    /// What an operator should know: `pendguard status` says what.
    pub warnings: usize,
    pub not_ready: Option<String>,
}

/// Why there is no new answer.
#[derive(Clone, Debug)]
pub struct Trouble {
    pub reason: String,
    /// How long ago the last answer came, if there was one.
    pub since: Option<Duration>,
}

/// What a replica had counted before.
struct Before {
    calls: u64,
    took: Durations,
}

/// Everything.
pub struct App {
    pub colours: bool,
    pub paused: bool,
    pub help: bool,
    pub filter: String,
    /// Whether what is typed belongs to the filter.
    pub typing: bool,
    pub sort: Column,
    pub descending: bool,
    pub head: Option<Head>,
    pub trouble: Option<Trouble>,
    /// Those that match the filter, sorted.
    pub shown: Vec<usize>,
    pub rows: Vec<Row>,
    /// Which of those shown is selected.
    pub selected: usize,
    /// Which of those shown is the first on the screen.
    pub offset: usize,
    /// Rows on the screen.
    pub page: usize,
    answered: Option<Instant>,
    before: HashMap<(String, String), Before>,
}

impl App {
    /// Before the first answer.
    pub fn new(colours: bool) -> Self {
        Self {
            colours,
            paused: false,
            help: false,
            filter: String::new(),
            typing: false,
            sort: Column::Workload,
            descending: false,
            head: None,
            trouble: None,
            shown: Vec::new(),
            rows: Vec::new(),
            selected: 0,
            offset: 0,
            page: 0,
            answered: None,
            before: HashMap::new(),
        }
    }

    /// There is an answer.
    pub fn answered(&mut self, report: Report, now: Instant) {
        self.trouble = None;
        // What is counted meanwhile belongs to the interval that ends with the pause.
        if self.paused && self.head.is_some() {
            return;
        }
        let elapsed = self
            .answered
            .map(|before| now.saturating_duration_since(before))
            .filter(|elapsed| !elapsed.is_zero());
        let mut before = HashMap::with_capacity(report.replicas.len());
        let mut rate = None;
        self.rows.clear();
        for replica in &report.replicas {
            let key = (replica.namespace.clone(), replica.pod.clone());
            let counted = Before {
                calls: calls(replica),
                took: replica.took(),
            };
            let row = row(replica, &counted, self.before.get(&key), elapsed);
            if let Some(more) = row.rate {
                *rate.get_or_insert(0.0) += more;
            }
            self.rows.push(row);
            before.insert(key, counted);
        }
        self.before = before;
        self.answered = Some(now);
        self.head = Some(head(report, &self.rows, rate));
        self.arrange();
    }

    /// There is none.
    pub fn failed(&mut self, reason: String, now: Instant) {
        self.trouble = Some(Trouble {
            reason: clean(&reason).into_owned(),
            since: self
                .answered
                .map(|answered| now.saturating_duration_since(answered)),
        });
    }

    /// A key was pressed.
    pub fn key(&mut self, key: KeyEvent) -> Next {
        let control = key.modifiers.contains(KeyModifiers::CONTROL);
        if control && matches!(key.code, KeyCode::Char('c' | 'C')) {
            return Next::Quit;
        }
        if self.help {
            // Whatever it is, it was for the help; but who wants to leave, leaves.
            self.help = false;
            return match key.code {
                KeyCode::Char('q') => Next::Quit,
                _ => Next::Draw,
            };
        }
        if self.typing {
            self.typed(key.code, control);
            return Next::Draw;
        }
        match key.code {
            KeyCode::Char('q' | 'Q') => return Next::Quit,
            KeyCode::Char('?' | 'h') => self.help = true,
            KeyCode::Char('/') => self.typing = true,
            KeyCode::Char(' ') => self.paused = !self.paused,
            KeyCode::Char('r') => {
                self.descending = !self.descending;
                self.arrange();
            }
            KeyCode::Char('>' | '.') | KeyCode::Right => self.sort_by(self.sort.step(true)),
            KeyCode::Char('<' | ',') | KeyCode::Left => self.sort_by(self.sort.step(false)),
            KeyCode::Esc => {
                self.filter.clear();
                self.arrange();
            }
            code => self.moved(code),
        }
        Next::Draw
    }

    fn typed(&mut self, code: KeyCode, control: bool) {
        match code {
            KeyCode::Enter => self.typing = false,
            KeyCode::Esc => {
                self.typing = false;
                self.filter.clear();
            }
            KeyCode::Backspace => {
                self.filter.pop();
            }
            KeyCode::Char('u') if control => self.filter.clear(),
            KeyCode::Char(c) if !control && !c.is_control() && self.filter.len() < FILTER => {
                self.filter.push(c);
            }
            code => return self.moved(code),
        }
        self.arrange();
    }

    fn moved(&mut self, code: KeyCode) {
        let page = self.page.max(1);
        let to = match code {
            KeyCode::Up | KeyCode::Char('k') => self.selected.saturating_sub(1),
            KeyCode::Down | KeyCode::Char('j') => self.selected.saturating_add(1),
            KeyCode::PageUp => self.selected.saturating_sub(page),
            KeyCode::PageDown => self.selected.saturating_add(page),
            KeyCode::Home => 0,
            KeyCode::End => usize::MAX,
            _ => return,
        };
        self.selected = to.min(self.shown.len().saturating_sub(1));
    }

    fn sort_by(&mut self, column: Column) {
        self.sort = column;
        self.descending = column.descends();
        self.arrange();
    }

    /// Filters and sorts, and keeps the same replica selected.
    fn arrange(&mut self) {
        let selected = self.row().map(|row| row.pod.clone());
        let text = self.filter.to_lowercase();
        let rows = &self.rows;
        self.shown.clear();
        self.shown
            .extend((0..rows.len()).filter(|&i| text.is_empty() || rows[i].has(&text)));
        let (sort, descending) = (self.sort, self.descending);
        self.shown.sort_by(|&one, &other| {
            let (one, other) = (&rows[one], &rows[other]);
            let order = one.compare(other, sort);
            let order = if descending { order.reverse() } else { order };
            // What is alike stays where it was.
            order
                .then_with(|| one.compare(other, Column::Workload))
                .then_with(|| one.compare(other, Column::Replica))
                .then_with(|| one.pod.cmp(&other.pod))
        });
        let same = |pod: String| self.shown.iter().position(|&i| rows[i].pod == pod);
        let last = self.shown.len().saturating_sub(1);
        self.selected = selected.and_then(same).unwrap_or(self.selected).min(last);
    }

    /// The replica that is selected.
    pub fn row(&self) -> Option<&Row> {
        self.rows.get(*self.shown.get(self.selected)?)
    }

    /// Scrolls until what is selected is among `page` rows.
    pub fn scroll(&mut self, page: usize) {
        self.page = page;
        let last = self.shown.len().saturating_sub(page);
        let lowest = (self.selected + 1).saturating_sub(page);
        // A page without rows shows none; it doesn't matter which.
        self.offset = self.offset.clamp(lowest.min(self.selected), self.selected);
        self.offset = self.offset.min(last);
    }
}

/// All calls of a replica, whatever became of them.
fn calls(replica: &Replica) -> u64 {
    let known: u64 = replica.calls.iter().map(|calls| calls.count).sum();
    known + replica.unresolved
}

fn row(
    replica: &Replica,
    counted: &Before,
    before: Option<&Before>,
    elapsed: Option<Duration>,
) -> Row {
    let interval = before.zip(elapsed);
    let rate = interval.map(|(before, elapsed)| {
        counted.calls.saturating_sub(before.calls) as f64 / elapsed.as_secs_f64()
    });
    let recent = interval
        .map(|(before, _)| counted.took.since(&before.took))
        .filter(|recent| recent.count() > 0);
    let took = recent.as_ref().unwrap_or(&counted.took);
    Row {
        workload: workload(&replica.namespace, &replica.workload, &replica.vertex),
        replica: replica.replica,
        mode: replica.mode,
        rate,
        admitted: replica.calls_with(ADMITTED),
        would_reject: replica.calls_with(WOULD_REJECT),
        rejected: replica.calls_with(REJECTED),
        unresolved: replica.unresolved,
        p50: took.quantile(0.5),
        p99: took.quantile(0.99),
        recent: recent.is_some(),
        pending: replica.pending,
        codes: replica.failures(),
        pod: clean(&replica.pod).into_owned(),
        gone: replica.gone.is_some(),
    }
}

fn head(report: Report, rows: &[Row], rate: Option<f64>) -> Head {
    let sum = |of: fn(&Row) -> u64| rows.iter().map(of).sum();
    let gone = rows.iter().filter(|row| row.gone).count();
    let unattached = report.programs.iter().filter(|program| !program.attached);
    let full = report.maps.iter().filter_map(MapFill::warning);
    Head {
        version: clean(&report.agent.version).into_owned(),
        mode: report.mode,
        tap: clean(&report.tap).into_owned(),
        enforcer: clean(&report.enforcer).into_owned(),
        uptime: Duration::from_secs(report.agent.uptime_seconds),
        pid: report.agent.pid,
        replicas: rows.len() - gone,
        gone,
        rate,
        admitted: sum(|row| row.admitted),
        would_reject: sum(|row| row.would_reject),
        rejected: sum(|row| row.rejected),
        unresolved: sum(|row| row.unresolved),
        would_save: savings::total(&report.savings, |of| of.would_save),
        saves: savings::total(&report.savings, |of| of.saves),
        warnings: report.warnings.len() + unattached.count() + full.count(),
        not_ready: report.not_ready.map(|why| clean(&why).into_owned()),
    }
}

#[cfg(test)]
pub mod tests {
    use std::time::SystemTime;

    use agent_common::abi::answers::{BOUNDS, BOUNDS_NS};

    use super::*;
    use crate::api::{client, pb};

    /// `n` replicas of workloads with three each, of which each has made `calls` calls that took 3 ms.
    pub fn report(n: u32, calls: u64) -> Report {
        let replica = |i: u32| {
            let mut took = Durations::default();
            for _ in 0..calls {
                took.record(Duration::from_millis(3));
            }
            let verdict = match i % 3 {
                0 => pb::Verdict::Admitted,
                _ => pb::Verdict::WouldReject,
            };
            pb::Replica {
                namespace: "payments".to_owned(),
                kind: pb::Kind::MonoVertex.into(),
                workload: format!("orders{:02}", i / 3),
                pod: format!("orders{:02}-mv-{}-abcde", i / 3, i % 3),
                replica: (i != 5).then_some(i % 3),
                mode: pb::Mode::Audit.into(),
                since: Some(SystemTime::UNIX_EPOCH.into()),
                calls: vec![pb::Calls {
                    method: "/source.v1.Source/PendingFn".to_owned(),
                    verdict: verdict.into(),
                    count: calls + u64::from(i),
                }],
                durations: vec![pb::Durations {
                    method: "/source.v1.Source/PendingFn".to_owned(),
                    code: if i == 1 { "RESET" } else { "OK" }.to_owned(),
                    buckets: took.buckets(),
                    sum_nanoseconds: took.sum(),
                }],
                pending: (i != 2).then_some(i64::from(i) - 1),
                ..pb::Replica::default()
            }
        };
        let answers = client::Report {
            status: pb::GetStatusResponse {
                version: "1.2.3".to_owned(),
                pid: 42,
                started: Some(SystemTime::UNIX_EPOCH.into()),
                mode: pb::Mode::Audit.into(),
                tap: "fentry".to_owned(),
                enforcer: "none".to_owned(),
                ..pb::GetStatusResponse::default()
            },
            replicas: (0..n).map(replica).collect(),
            bucket_bounds: BOUNDS_NS[..BOUNDS].to_vec(),
        };
        Report::new(answers, SystemTime::UNIX_EPOCH + Duration::from_secs(3_600))
    }

    /// After two answers, a second and ten calls of each replica apart.
    pub fn app(n: u32) -> App {
        let mut app = App::new(false);
        let start = Instant::now();
        app.answered(report(n, 100), start);
        app.answered(report(n, 110), start + Duration::from_secs(1));
        app
    }

    pub fn press(app: &mut App, keys: impl IntoIterator<Item = KeyCode>) -> Next {
        let mut next = Next::Draw;
        for key in keys {
            next = app.key(KeyEvent::new(key, KeyModifiers::NONE));
        }
        next
    }

    fn write(app: &mut App, text: &str) -> Next {
        press(app, text.chars().map(KeyCode::Char))
    }

    fn pods(app: &App) -> Vec<&str> {
        let rows = app.shown.iter().map(|&i| &*app.rows[i].pod);
        rows.collect()
    }

    #[test]
    fn rates_are_of_the_last_interval() {
        let mut app = App::new(false);
        let start = Instant::now();
        app.answered(report(3, 100), start);
        let row = &app.rows[1];
        assert_eq!(
            (row.rate, row.recent),
            (None, false),
            "there was no interval"
        );
        assert!(row.p50.is_some(), "of all time");
        assert_eq!(app.head.as_ref().unwrap().rate, None);
        app.answered(report(3, 105), start + Duration::from_secs(2));
        let row = &app.rows[1];
        assert_eq!((row.rate, row.recent), (Some(2.5), true));
        assert_eq!(app.head.as_ref().unwrap().rate, Some(7.5));
        // Nothing in this one: the durations of all time.
        app.answered(report(3, 105), start + Duration::from_secs(3));
        let row = &app.rows[1];
        assert_eq!((row.rate, row.recent), (Some(0.0), false));
        assert!(row.p50.is_some());
        // A new agent counts from 0 on.
        app.answered(report(3, 1), start + Duration::from_secs(4));
        assert_eq!(app.rows[1].rate, Some(0.0));
        // A replica that comes has no interval yet.
        app.answered(report(4, 1), start + Duration::from_secs(5));
        assert_eq!(app.rows[3].rate, None);
        // Two answers at the same time.
        app.answered(report(4, 2), start + Duration::from_secs(5));
        assert_eq!(app.rows[0].rate, None);
    }

    #[test]
    fn totals_and_savings() {
        let app = app(6);
        let head = app.head.unwrap();
        assert_eq!((head.replicas, head.gone), (6, 0));
        assert_eq!((head.admitted, head.would_reject), (223, 452));
        let would = head.would_save.unwrap();
        assert_eq!(would.calls_per_hour, 452.0);
        let seconds = would.source_seconds_per_hour.unwrap();
        assert!((seconds - 1.356).abs() < 1e-6, "{seconds}");
        assert_eq!(head.saves, None);
        assert_eq!(app.rows[1].codes, "RESET 110");
    }

    #[test]
    fn a_pause_holds_the_picture_and_loses_no_call() {
        let mut app = App::new(false);
        let start = Instant::now();
        app.answered(report(3, 100), start);
        write(&mut app, " ");
        app.answered(report(3, 200), start + Duration::from_secs(1));
        assert_eq!(app.rows[0].admitted, 100);
        write(&mut app, " ");
        app.answered(report(3, 300), start + Duration::from_secs(2));
        assert_eq!((app.rows[0].admitted, app.rows[0].rate), (300, Some(100.0)));
    }

    #[test]
    fn an_agent_that_is_away_is_told_and_comes_back() {
        let mut app = app(3);
        let later = app.answered.unwrap() + Duration::from_secs(7);
        app.failed("no agent\u{1b}".to_owned(), later);
        let trouble = app.trouble.as_ref().unwrap();
        assert_eq!(trouble.reason, "no agent\u{fffd}");
        assert_eq!(trouble.since, Some(Duration::from_secs(7)));
        assert_eq!(app.rows.len(), 3, "what was known stays");
        app.answered(report(3, 120), later);
        assert!(app.trouble.is_none());
        let mut new = App::new(false);
        new.failed("no agent".to_owned(), later);
        assert_eq!(new.trouble.unwrap().since, None);
    }

    #[test]
    fn sorted_by_any_column() {
        let mut app = app(6);
        assert_eq!(app.sort, Column::Workload);
        assert!(pods(&app).is_sorted());
        for column in Column::ALL.into_iter().skip(1) {
            press(&mut app, [KeyCode::Right]);
            assert_eq!(app.sort, column);
            assert_eq!(app.shown.len(), 6);
        }
        press(&mut app, [KeyCode::Right]);
        assert_eq!(app.sort, Column::Workload);
        write(&mut app, "<<");
        assert_eq!(app.sort, Column::Pending);
        let pending: Vec<_> = app.shown.iter().map(|&i| app.rows[i].pending).collect();
        assert_eq!(
            pending,
            [Some(4), Some(3), Some(2), Some(0), Some(-1), None]
        );
        write(&mut app, "r");
        let first = &app.rows[app.shown[0]];
        assert_eq!(first.pending, None);
        // Numbers first, and from the smallest on.
        app.sort_by(Column::Replica);
        let numbers: Vec<_> = app.shown.iter().map(|&i| app.rows[i].replica).collect();
        assert_eq!(numbers[..3], [Some(0), Some(0), Some(1)]);
        assert_eq!(numbers[5], None);
    }

    #[test]
    fn filtered_by_what_is_typed() {
        let mut app = app(9);
        write(&mut app, "/ORDERS02q");
        assert!(app.shown.is_empty(), "q was typed, and means no end");
        press(&mut app, [KeyCode::Backspace]);
        assert_eq!(app.shown.len(), 3);
        press(&mut app, [KeyCode::Enter]);
        assert!(!app.typing);
        assert_eq!(write(&mut app, "q"), Next::Quit);
        press(&mut app, [KeyCode::Esc]);
        assert_eq!(app.shown.len(), 9);
        write(&mut app, "/unknown");
        assert_eq!(app.shown.len(), 1);
        press(&mut app, [KeyCode::Esc]);
        assert_eq!((app.shown.len(), &*app.filter, app.typing), (9, "", false));
        write(&mut app, "/");
        write(&mut app, &"x".repeat(1_000));
        assert_eq!(app.filter.len(), FILTER);
        app.key(KeyEvent::new(KeyCode::Char('u'), KeyModifiers::CONTROL));
        assert_eq!(app.filter, "");
        let end = app.key(KeyEvent::new(KeyCode::Char('c'), KeyModifiers::CONTROL));
        assert_eq!(end, Next::Quit, "even while typing");
    }

    #[test]
    fn help_goes_with_the_next_key() {
        let mut app = app(3);
        write(&mut app, "?");
        assert!(app.help);
        assert_eq!(write(&mut app, " "), Next::Draw);
        assert!(!app.help && !app.paused);
        write(&mut app, "?");
        assert_eq!(write(&mut app, "q"), Next::Quit);
    }

    #[test]
    fn what_is_selected_is_on_the_screen() {
        let mut app = app(30);
        for (key, selected, offset) in [
            (KeyCode::Up, 0, 0),
            (KeyCode::Down, 1, 0),
            (KeyCode::PageDown, 11, 2),
            (KeyCode::PageDown, 21, 12),
            (KeyCode::PageDown, 29, 20),
            (KeyCode::Down, 29, 20),
            (KeyCode::Up, 28, 20),
            (KeyCode::PageUp, 18, 18),
            (KeyCode::Home, 0, 0),
            (KeyCode::End, 29, 20),
        ] {
            app.scroll(10);
            press(&mut app, [key]);
            app.scroll(10);
            assert_eq!((app.selected, app.offset), (selected, offset), "{key:?}");
        }
        // The same replica stays selected, wherever it goes.
        let pod = app.row().unwrap().pod.clone();
        write(&mut app, "r");
        assert_eq!(app.row().unwrap().pod, pod);
        // A larger screen shows what there is, a smaller one what is selected.
        app.scroll(100);
        assert_eq!(app.offset, 0);
        app.selected = 29;
        app.scroll(3);
        assert_eq!(app.offset, 27);
        app.scroll(0);
        app.filter = "nothing".to_owned();
        app.arrange();
        app.scroll(10);
        assert_eq!((app.selected, app.offset), (0, 0));
    }
}
