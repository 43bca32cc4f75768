//! How `pendguard top` looks: lines of text, made for whatever size there is.
#![forbid(unsafe_code)]

use ratatui::Frame;
use ratatui::layout::Rect;
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Clear, Paragraph};

use super::super::{duration, pending, took, took_or_dash};
use super::state::{App, Column, Head, Row, Trouble};

/// Columns that are always shown, and those that wider terminals have, too.
const NARROW: [Column; 10] = [
    Column::Workload,
    Column::Replica,
    Column::Mode,
    Column::Rate,
    Column::Admitted,
    Column::WouldReject,
    Column::Rejected,
    Column::P50,
    Column::P99,
    Column::Pending,
];
/// From this width on there is room for all columns.
const WIDE: u16 = 110;
/// The workload's column at least.
const WORKLOAD_MIN: usize = 8;

/// What the keys do.
const HELP: [&str; 14] = [
    "↑ ↓ PgUp PgDn Home End   select a replica",
    "< >  or  ← →             sort by another column",
    "r                        sort the other way round",
    "/                        type what to look for; Enter keeps it, Esc ends it",
    "space                    hold the picture; go on",
    "q  or  Ctrl-C            quit",
    "",
    "CALL/S                   calls a second in the last interval",
    "ADMIT WOULD REJECT       calls by verdict: admitted, would_reject, rejected",
    "UNRES                    calls whose method is not known",
    "P50 P99                  how long calls took in the last interval; with ~ since",
    "                         the replica was found, as the interval had no answer",
    "PENDING                  last count that the source answered; n/a: it has none",
    "NOT OK                   how calls ended that didn't end OK",
];

/// Draws everything.
pub fn draw(frame: &mut Frame<'_>, app: &mut App) {
    let area = frame.area();
    let width = usize::from(area.width);
    let mut top = head(app);
    top.push(Line::default());
    let columns: &[Column] = match area.width {
        WIDE.. => &Column::ALL,
        _ => &NARROW,
    };
    // Most important is the table, then what is wrong, then the keys.
    let bottom: u16 = if area.height > 8 { 2 } else { 0 };
    let head_lines = match area.height {
        9.. => top.len(),
        4.. => 1,
        _ => 0,
    };
    top.truncate(head_lines);
    let page = usize::from(area.height).saturating_sub(head_lines + 1 + usize::from(bottom));
    app.scroll(page);
    let mut lines = top;
    lines.push(headings(app, columns, width));
    let rows = app.shown.iter().enumerate().skip(app.offset).take(page);
    for (at, &row) in rows {
        let selected = at == app.selected;
        lines.push(line(app, &app.rows[row], columns, width, selected));
    }
    frame.render_widget(Paragraph::new(lines), area);
    if bottom > 0 {
        let below = Rect {
            y: area.y + area.height - bottom,
            height: bottom,
            ..area
        };
        frame.render_widget(Clear, below);
        frame.render_widget(Paragraph::new(vec![detail(app), keys(app)]), below);
    }
    if app.help {
        help(frame, area);
    }
}

fn bold() -> Style {
    Style::new().add_modifier(Modifier::BOLD)
}

/// A colour, where there may be any.
fn colour(app: &App, colour: Color) -> Style {
    match app.colours {
        true => Style::new().fg(colour),
        false => Style::new(),
    }
}

/// The agent and its totals. What is wrong comes first, so that it is seen where there is room for one line only.
fn head(app: &App) -> Vec<Line<'static>> {
    let mut lines = Vec::new();
    if let Some(Trouble { reason, since }) = &app.trouble {
        let since = match since {
            Some(since) => format!("last answer {} ago; ", duration(*since)),
            None => String::new(),
        };
        let text = format!("agent away, trying again; {since}{reason}");
        lines.push(Line::styled(text, colour(app, Color::Red).patch(bold())));
    }
    let Some(head) = &app.head else {
        if lines.is_empty() {
            lines.push(Line::from("asking the agent"));
        }
        return lines;
    };
    let Head {
        version,
        mode,
        tap,
        enforcer,
        pid,
        ..
    } = head;
    // In front, where there is always room for it.
    let paused = if app.paused { "PAUSED  " } else { "" };
    lines.push(Line::styled(
        format!(
            "{paused}pendguard {version}: mode {mode}, tap {tap}, enforcer {enforcer}, up {}, pid {pid}",
            duration(head.uptime)
        ),
        bold(),
    ));
    let gone = match head.gone {
        0 => String::new(),
        gone => format!(" ({gone} gone)"),
    };
    let rate = head
        .rate
        .map_or_else(|| "-".to_owned(), |rate| format!("{rate:.1}"));
    let mut totals = format!(
        "{} replicas{gone}, {rate} calls/s: {} admitted, {} would_reject, {} rejected",
        head.replicas,
        count(head.admitted),
        count(head.would_reject),
        count(head.rejected)
    );
    if head.unresolved > 0 {
        totals += &format!(", {} unresolved", count(head.unresolved));
    }
    lines.push(Line::from(totals));
    for (what, saving) in [("would save", head.would_save), ("saves", head.saves)] {
        if let Some(saving) = saving {
            let text = format!("{what} {}", saving.text());
            lines.push(Line::styled(text, colour(app, Color::Green)));
        }
    }
    if let Some(reason) = &head.not_ready {
        lines.push(Line::styled(
            format!("not ready: {reason}"),
            colour(app, Color::Yellow),
        ));
    }
    if head.warnings > 0 {
        let text = format!("warnings: {}; `pendguard status` shows them", head.warnings);
        lines.push(Line::styled(text, colour(app, Color::Yellow)));
    }
    lines
}

/// A column's width; the workload has what is left.
fn width_of(column: Column, columns: &[Column], width: usize) -> usize {
    match column {
        Column::Workload => {
            let others = columns.iter().filter(|&&other| other != Column::Workload);
            let others: usize = others.map(|&other| fixed(other) + 1).sum();
            width.saturating_sub(others).max(WORKLOAD_MIN)
        }
        column => fixed(column),
    }
}

const fn fixed(column: Column) -> usize {
    match column {
        Column::Workload => 0,
        Column::Replica => 4,
        Column::Mode | Column::P50 | Column::P99 | Column::Pending => 7,
        Column::Rate
        | Column::Admitted
        | Column::WouldReject
        | Column::Rejected
        | Column::Unresolved => 6,
        Column::Codes => 22,
    }
}

/// A workload's name of exactly that width. Where it doesn't fit, its end says more than its beginning, which many share.
fn fit_end(text: &str, width: usize) -> String {
    let length = text.chars().count();
    if length <= width || width == 0 {
        return fit(text, width, false);
    }
    let kept = text.chars().skip(length + 1 - width);
    std::iter::once('…').chain(kept).collect()
}

/// Text of exactly that width; what doesn't fit is marked.
fn fit(text: &str, width: usize, right: bool) -> String {
    let length = text.chars().count();
    if length > width {
        let kept = text.chars().take(width.saturating_sub(1));
        return kept.chain(std::iter::once('…').take(width)).collect();
    }
    match right {
        true => format!("{text:>width$}"),
        false => format!("{text:<width$}"),
    }
}

fn is_text(column: Column) -> bool {
    matches!(column, Column::Workload | Column::Mode | Column::Codes)
}

fn headings(app: &App, columns: &[Column], width: usize) -> Line<'static> {
    let mut spans = Vec::new();
    for &column in columns {
        if !spans.is_empty() {
            spans.push(Span::raw(" "));
        }
        let sorted = column == app.sort;
        let cells = width_of(column, columns, width);
        let text = match (sorted, app.descending) {
            (false, _) => column.name().to_owned(),
            // Where there is room for the mark.
            (true, _) if column.name().len() >= cells => column.name().to_owned(),
            (true, true) => format!("{}↓", column.name()),
            (true, false) => format!("{}↑", column.name()),
        };
        let style = match sorted {
            true => bold().add_modifier(Modifier::UNDERLINED),
            false => bold(),
        };
        spans.push(Span::styled(fit(&text, cells, !is_text(column)), style));
    }
    Line::from(spans)
}

fn line(app: &App, row: &Row, columns: &[Column], width: usize, selected: bool) -> Line<'static> {
    let mut spans = Vec::with_capacity(columns.len() * 2);
    for &column in columns {
        if !spans.is_empty() {
            spans.push(Span::raw(" "));
        }
        let text = cell(row, column);
        let cells = width_of(column, columns, width);
        let style = match column {
            Column::WouldReject if row.would_reject > 0 => colour(app, Color::Yellow),
            Column::Rejected if row.rejected > 0 => colour(app, Color::Green),
            Column::Unresolved if row.unresolved > 0 => colour(app, Color::Magenta),
            Column::Codes => colour(app, Color::Red),
            _ => Style::new(),
        };
        let text = match column {
            Column::Workload => fit_end(&text, cells),
            _ => fit(&text, cells, !is_text(column)),
        };
        spans.push(Span::styled(text, style));
    }
    let mut style = Style::new();
    if row.gone {
        style = style.add_modifier(Modifier::DIM);
    }
    if selected {
        style = style.add_modifier(Modifier::REVERSED);
    }
    Line::from(spans).style(style)
}

fn cell(row: &Row, column: Column) -> String {
    // Of all time, not of the last interval.
    let time = |duration| match (row.recent, duration) {
        (false, Some(duration)) => format!("~{}", took(duration)),
        _ => took_or_dash(duration),
    };
    match column {
        Column::Workload => row.workload.clone(),
        Column::Replica => number(row, "?"),
        Column::Mode => if row.gone { "gone" } else { row.mode }.to_owned(),
        Column::Rate => row
            .rate
            .map_or_else(|| "-".to_owned(), |rate| format!("{rate:.1}")),
        Column::Admitted => count(row.admitted),
        Column::WouldReject => count(row.would_reject),
        Column::Rejected => count(row.rejected),
        Column::Unresolved => count(row.unresolved),
        Column::P50 => time(row.p50),
        Column::P99 => time(row.p99),
        Column::Pending => match row.pending {
            Some(n) if n > 999_999 => count(n.unsigned_abs()),
            value => pending(value),
        },
        Column::Codes => row.codes.clone(),
    }
}

fn number(row: &Row, unknown: &str) -> String {
    row.replica
        .map_or_else(|| unknown.to_owned(), |number| number.to_string())
}

/// A count in six characters: `123456`, `1.23M`, `12.3G`.
fn count(count: u64) -> String {
    const UNITS: [(u64, &str); 4] = [
        (1_000_000_000_000_000, "P"),
        (1_000_000_000_000, "T"),
        (1_000_000_000, "G"),
        (1_000_000, "M"),
    ];
    for (unit, name) in UNITS {
        if count >= unit {
            // Cut off, not rounded: 999999999 is no 1000M.
            let hundredths = u128::from(count) * 100 / u128::from(unit);
            return match hundredths {
                0..1_000 => format!("{}.{:02}{name}", hundredths / 100, hundredths % 100),
                1_000..10_000 => format!("{}.{}{name}", hundredths / 100, hundredths / 10 % 10),
                _ => format!("{}{name}", hundredths / 100),
            };
        }
    }
    count.to_string()
}

/// What has no column, or none in narrow terminals, of the replica that is selected.
fn detail(app: &App) -> Line<'static> {
    let Some(row) = app.row() else {
        let text = match (&app.head, app.rows.is_empty()) {
            (None, _) => "",
            (Some(_), true) => "no source replica on this node",
            (Some(_), false) => "no replica matches",
        };
        return Line::from(text);
    };
    let mut text = format!(
        "{} replica {}, pod {}",
        row.workload,
        number(row, "unknown"),
        row.pod
    );
    if row.unresolved > 0 {
        text += &format!(", unresolved {}", row.unresolved);
    }
    if !row.codes.is_empty() {
        text += &format!(", ended {}", row.codes);
    }
    Line::from(text)
}

fn keys(app: &App) -> Line<'static> {
    let of = match app.shown.len() {
        0 => String::new(),
        n => format!("{}/{n}  ", app.selected + 1),
    };
    let text = match (app.typing, &*app.filter) {
        (true, filter) => format!("{of}/{filter}▏"),
        (false, "") => format!("{of}? help  / filter  < > sort  r reverse  space hold  q quit"),
        (false, filter) => format!("{of}/{filter}  Esc ends the filter  ? help  q quit"),
    };
    Line::styled(text, Style::new().add_modifier(Modifier::DIM))
}

fn help(frame: &mut Frame<'_>, area: Rect) {
    let widest = HELP.iter().map(|line| line.chars().count()).max();
    let width = u16::try_from(widest.unwrap_or_default() + 2).unwrap_or(u16::MAX);
    let height = u16::try_from(HELP.len() + 2).unwrap_or(u16::MAX);
    let (width, height) = (width.min(area.width), height.min(area.height));
    let place = Rect {
        x: area.x + (area.width - width) / 2,
        y: area.y + (area.height - height) / 2,
        width,
        height,
    };
    let mut lines = vec![Line::styled(
        fit(" keys and columns", width.into(), false),
        Style::new().add_modifier(Modifier::REVERSED),
    )];
    lines.extend(HELP.iter().map(|line| Line::from(format!(" {line}"))));
    lines.push(Line::styled(
        fit(" any key goes back", width.into(), false),
        Style::new().add_modifier(Modifier::REVERSED),
    ));
    frame.render_widget(Clear, place);
    frame.render_widget(Paragraph::new(lines), place);
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use ratatui::Terminal;
    use ratatui::backend::TestBackend;
    use ratatui::crossterm::event::KeyCode;

    use super::super::state::tests::{app, press};
    use super::*;

    fn drawn(app: &mut App, width: u16, height: u16) -> Terminal<TestBackend> {
        let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
        terminal.draw(|frame| draw(frame, app)).unwrap();
        terminal
    }

    fn text(app: &mut App, width: u16, height: u16) -> String {
        let terminal = drawn(app, width, height);
        let cells = terminal.backend().buffer().content();
        cells
            .chunks(width.into())
            .map(|row| {
                let line: String = row.iter().map(|cell| cell.symbol()).collect();
                line.trim_end().to_owned() + "\n"
            })
            .collect()
    }

    #[test]
    fn eighty_by_twenty_four() {
        let mut app = app(30);
        let text = text(&mut app, 80, 24);
        let expected = "\
pendguard 1.2.3: mode audit, tap fentry, enforcer none, up 1 h 0 min, pid 42
30 replicas, 300.0 calls/s: 1235 admitted, 2500 would_reject, 0 rejected
would save 2500 calls an hour, 7.50s of the source's time

WORKLOAD↑       REPL MODE    CALL/S  ADMIT  WOULD REJECT     P50     P99 PENDING
";
        assert!(text.starts_with(expected), "{text}");
        assert_eq!(text.lines().count(), 24);
        assert!(text.lines().all(|line| line.chars().count() <= 80));
    }

    #[test]
    fn wide_ones_have_all_columns() {
        let mut app = app(4);
        let text = text(&mut app, 120, 40);
        let line = text.lines().find(|line| line.contains("UNRES")).unwrap();
        assert!(line.ends_with("PENDING NOT OK"), "{line}");
        assert!(text.contains("RESET 110"), "{text}");
        assert!(
            text.contains("\npayments/orders00 replica 0, pod orders00-mv-0-abcde\n"),
            "{text}"
        );
        assert!(text.lines().all(|line| line.chars().count() <= 120));
    }

    #[test]
    fn no_size_makes_it_panic() {
        for n in [0, 1, 30] {
            for width in [0, 1, 2, 5, 10, 30, 79, 80, 300] {
                for height in [0, 1, 2, 3, 4, 5, 8, 9, 10, 30] {
                    let mut app = app(n);
                    for keys in [&[][..], &[KeyCode::End], &[KeyCode::Char('?')]] {
                        press(&mut app, keys.iter().copied());
                        drawn(&mut app, width, height);
                    }
                    app.failed("away".to_owned(), Instant::now());
                    drawn(&mut app, width, height);
                    let mut new = App::new(true);
                    drawn(&mut new, width, height);
                }
            }
        }
    }

    #[test]
    fn it_follows_its_size() {
        let mut app = app(30);
        let mut terminal = drawn(&mut app, 80, 24);
        press(&mut app, [KeyCode::End]);
        for (width, height) in [(120, 40), (20, 6), (80, 24)] {
            terminal.backend_mut().resize(width, height);
            terminal.draw(|frame| draw(frame, &mut app)).unwrap();
            let shown = app.offset..app.offset + app.page;
            assert!(shown.contains(&app.selected), "{shown:?}");
        }
    }

    #[test]
    fn without_colours_there_are_none() {
        let mut app = app(6);
        app.failed("away".to_owned(), Instant::now());
        let colours = |app: &mut App| {
            let terminal = drawn(app, 120, 40);
            let cells = terminal.backend().buffer().content();
            cells
                .iter()
                .any(|cell| cell.fg != Color::Reset || cell.bg != Color::Reset)
        };
        assert!(!colours(&mut app));
        app.colours = true;
        assert!(colours(&mut app));
    }

    #[test]
    fn what_is_going_on_is_said() {
        let mut new = App::new(false);
        assert!(text(&mut new, 80, 24).starts_with("asking the agent\n"));
        new.failed("no agent listens".to_owned(), Instant::now());
        let away = text(&mut new, 80, 24);
        assert!(
            away.starts_with("agent away, trying again; no agent listens\n"),
            "{away}"
        );
        let mut none = app(0);
        assert!(text(&mut none, 80, 24).contains("\nno source replica on this node\n"));
        let mut some = app(3);
        press(&mut some, "/zzz".chars().map(KeyCode::Char));
        let typing = text(&mut some, 80, 24);
        assert!(typing.contains("\nno replica matches\n/zzz▏\n"), "{typing}");
        press(&mut some, [KeyCode::Esc, KeyCode::Char(' ')]);
        assert!(text(&mut some, 80, 24).contains("PAUSED"));
        press(&mut some, [KeyCode::Char('?')]);
        let help = text(&mut some, 80, 24);
        assert!(help.contains("any key goes back"), "{help}");
        // With one line there is room for what is wrong.
        some.help = false;
        some.failed("no agent listens".to_owned(), Instant::now());
        assert!(text(&mut some, 80, 5).starts_with("agent away"));
    }

    #[test]
    fn counts_are_short() {
        for (n, text) in [
            (0, "0"),
            (999_999, "999999"),
            (1_000_000, "1.00M"),
            (12_345_678, "12.3M"),
            (999_999_999, "999M"),
            (1_000_000_000, "1.00G"),
            (u64::MAX, "18446P"),
        ] {
            assert_eq!(count(n), text);
            assert!(count(n).len() <= 6);
        }
    }

    #[test]
    fn what_does_not_fit_is_marked() {
        assert_eq!(fit("abcdef", 4, false), "abc…");
        assert_eq!(fit("abc", 4, true), " abc");
        assert_eq!(fit("abc", 1, true), "…");
        assert_eq!(fit("abc", 0, true), "");
        assert_eq!(fit_end("abcdef", 4), "…def");
        assert_eq!(fit_end("abc", 4), "abc ");
        assert_eq!(fit_end("abc", 1), "…");
        assert_eq!(fit_end("abc", 0), "");
    }
}
