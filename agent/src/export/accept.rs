//! Which of two formats a client wants (RFC 9110 §12.5.1).
#![forbid(unsafe_code)]

use hyper::header::{ACCEPT, HeaderMap};

/// What `/metrics` can answer with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// Prometheus' text format 0.0.4, which everything reads.
    Text,
    /// OpenMetrics 1.0.0.
    OpenMetrics,
}

impl Format {
    /// The content type of an answer in it.
    pub const fn content_type(self) -> &'static str {
        match self {
            Self::Text => "text/plain; version=0.0.4; charset=utf-8",
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
        }
    }

    const fn essence(self) -> (&'static str, &'static str, &'static str) {
        match self {
            Self::Text => ("text", "plain", "0.0.4"),
            Self::OpenMetrics => ("application", "openmetrics-text", "1.0.0"),
        }
    }

    /// The format for a request with these headers: OpenMetrics where the client prefers it, or names it and would take either.
    /// Who accepts neither gets text all the same, as RFC 9110 allows: a scraper that errs shall see metrics, not an error.
    pub fn wanted(headers: &HeaderMap) -> Self {
        let values = headers.get_all(ACCEPT).iter();
        let ranges: Vec<Range<'_>> = values
            .filter_map(|value| value.to_str().ok())
            .flat_map(|value| split(value, ','))
            .filter_map(Range::parse)
            .collect();
        let preference = |format| {
            let fit = ranges.iter().filter_map(|range| range.fits(format));
            // The closest range decides, not the most generous one.
            fit.max_by_key(|(closeness, quality)| (*closeness, *quality))
                .map_or((0, 0), |(closeness, quality)| (quality, closeness))
        };
        let (text, open) = (preference(Self::Text), preference(Self::OpenMetrics));
        if open.0 > 0 && open > text {
            Self::OpenMetrics
        } else {
            Self::Text
        }
    }
}

/// One media range of an Accept header.
#[derive(Debug, PartialEq, Eq)]
struct Range<'a> {
    kind: &'a str,
    subtype: &'a str,
    version: Option<&'a str>,
    /// In thousandths.
    quality: u16,
}

impl<'a> Range<'a> {
    /// Nothing for what is none: it is as if it weren't there.
    fn parse(text: &'a str) -> Option<Self> {
        let mut parts = split(text, ';').map(str::trim);
        let (kind, subtype) = parts.next()?.split_once('/')?;
        if kind.is_empty() || subtype.is_empty() {
            return None;
        }
        let mut range = Self {
            kind,
            subtype,
            version: None,
            quality: 1000,
        };
        for (name, value) in parts.filter_map(|part| part.split_once('=')) {
            let value = value
                .strip_prefix('"')
                .and_then(|value| value.strip_suffix('"'))
                .unwrap_or(value);
            // Others (charset; escaping, which Prometheus sends) change nothing here: all of our names are old ones.
            if name.eq_ignore_ascii_case("version") {
                range.version = Some(value);
            } else if name.eq_ignore_ascii_case("q") {
                range.quality = quality(value)?;
            }
        }
        Some(range)
    }

    /// How closely it names the format, and its quality; nothing where it doesn't mean it.
    fn fits(&self, format: Format) -> Option<(u8, u16)> {
        let (kind, subtype, version) = format.essence();
        let closeness = match (self.kind, self.subtype, self.version) {
            ("*", "*", None) => 1,
            (k, "*", None) if k.eq_ignore_ascii_case(kind) => 2,
            (k, s, v) if k.eq_ignore_ascii_case(kind) && s.eq_ignore_ascii_case(subtype) => match v
            {
                None => 3,
                Some(v) if v == version => 4,
                Some(_) => return None,
            },
            _ => return None,
        };
        Some((closeness, self.quality))
    }
}

/// A weight (RFC 9110 §12.4.2) in thousandths: 0 to 1, with three decimals at most.
fn quality(text: &str) -> Option<u16> {
    let (whole, decimals) = text.split_once('.').unwrap_or((text, ""));
    if decimals.len() > 3 || !decimals.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let thousandths = format!("{decimals:0<3}").parse().ok()?;
    match (whole, thousandths) {
        ("0", thousandths) => Some(thousandths),
        ("1", 0) => Some(1000),
        _ => None,
    }
}

/// The parts between separators that stand outside of quoted strings.
fn split(text: &str, separator: char) -> impl Iterator<Item = &str> {
    let (mut quoted, mut escaped) = (false, false);
    text.split(move |c| {
        let literal = std::mem::replace(&mut escaped, false);
        match c {
            _ if literal => {}
            '\\' if quoted => escaped = true,
            '"' => quoted = !quoted,
            _ => {}
        }
        c == separator && !quoted
    })
}

#[cfg(test)]
mod tests {
    use hyper::header::HeaderValue;

    use super::*;

    fn wanted(values: &[&str]) -> Format {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(ACCEPT, HeaderValue::from_str(value).unwrap());
        }
        Format::wanted(&headers)
    }

    #[test]
    fn who_prefers_it_gets_openmetrics() {
        for accept in [
            "application/openmetrics-text; version=1.0.0",
            "application/openmetrics-text;version=1.0.0",
            "Application/OpenMetrics-Text; Version=\"1.0.0\"; charset=utf-8",
            "application/openmetrics-text",
            "application/*",
            // Named by the client, who would take either.
            "application/openmetrics-text; version=1.0.0, */*",
            "*/*, application/openmetrics-text; version=1.0.0",
            "text/plain;q=0.5, application/openmetrics-text;version=1.0.0;q=0.501",
            "text/*;q=0.9, application/openmetrics-text;version=1.0.0",
            // In the manner of Prometheus 2 and 3.
            "application/openmetrics-text;version=1.0.0;q=0.5,application/openmetrics-text;version=0.0.1;q=0.4,\
             text/plain;version=0.0.4;q=0.3,*/*;q=0.2",
            "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,\
             application/openmetrics-text;version=0.0.1;q=0.5,text/plain;version=1.0.0;escaping=allow-utf-8;q=0.4,\
             text/plain;version=0.0.4;q=0.3,*/*;q=0.2",
            "application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily;encoding=delimited;q=0.7,\
             application/openmetrics-text;version=1.0.0;q=0.6,text/plain;version=0.0.4;q=0.4,*/*;q=0.2",
        ] {
            assert_eq!(wanted(&[accept]), Format::OpenMetrics, "{accept}");
        }
        let apart = ["text/plain;q=0.1", "application/openmetrics-text;q=0.2"];
        assert_eq!(wanted(&apart), Format::OpenMetrics);
    }

    #[test]
    fn everyone_else_gets_text() {
        assert_eq!(wanted(&[]), Format::Text);
        for accept in [
            "",
            ",;/",
            "*/*",
            "text/plain",
            "text/plain;version=0.0.4",
            "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8",
            "application/json",
            "application/openmetrics-text;version=0.0.1",
            "application/openmetrics-text;version=0.0.1,text/plain;version=0.0.4;q=0.5,*/*;q=0.1",
            "application/openmetrics-text;version=1.0.0;q=0",
            "application/openmetrics-text;version=1.0.0;q=0.000, application/*",
            "application/openmetrics-text;version=1.0.0;q=0.2, text/plain;q=0.3",
            "application/openmetrics-text;version=1.0.0, text/plain;version=0.0.4",
            // The closest range decides.
            "application/*;q=1, application/openmetrics-text;version=1.0.0;q=0.1, text/plain;q=0.2",
            // A weight that is none takes its range away.
            "application/openmetrics-text;version=1.0.0;q=2",
            "application/openmetrics-text;version=1.0.0;q=0.1234",
            "application/openmetrics-text;version=1.0.0;q=1.001",
            "application/openmetrics-text;version=1.0.0;q=-0",
            "application/openmetrics-text;version=1.0.0;q=",
            // In quotes, it is something else's parameter.
            "text/plain;x=\"a, application/openmetrics-text;version=1.0.0, \\\", b\"",
        ] {
            assert_eq!(wanted(&[accept]), Format::Text, "{accept}");
        }
    }

    #[test]
    fn weights() {
        for (text, thousandths) in [
            ("0", Some(0)),
            ("0.", Some(0)),
            ("0.5", Some(500)),
            ("0.05", Some(50)),
            ("0.999", Some(999)),
            ("1", Some(1000)),
            ("1.000", Some(1000)),
            ("1.5", None),
            (".5", None),
            ("0.+1", None),
        ] {
            assert_eq!(quality(text), thousandths, "{text}");
        }
    }

    proptest::proptest! {
        #[test]
        fn nothing_makes_it_panic(value in "[ -~]{0,80}") {
            wanted(&[&value]);
        }
    }
}
