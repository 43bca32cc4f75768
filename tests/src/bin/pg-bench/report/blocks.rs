//! Places in a document that a run fills in, marked by comments: `<!-- bench:NAME -->` and `<!-- /bench:NAME -->`.

use anyhow::{Context as _, Result, bail};

use super::markdown::Section;

/// The document with its places filled in; a place whose section wasn't measured keeps what it has.
pub fn fill(document: &str, sections: &[Section]) -> Result<String> {
    const BEGIN: &str = "<!-- bench:";
    let (mut filled, mut rest) = (String::new(), document);
    let mut places = 0;
    while let Some(at) = rest.find(BEGIN) {
        let (name, _) = rest[at + BEGIN.len()..]
            .split_once(" -->")
            .context("a mark without an end")?;
        let section = sections.iter().find(|section| section.name == name);
        let section = section.with_context(|| format!("there is no section {name:?}"))?;
        let (begin, end) = (
            format!("{BEGIN}{name} -->"),
            format!("<!-- /bench:{name} -->"),
        );
        let (before, behind) = rest.split_at(at + begin.len());
        let (old, behind) = behind
            .split_once(&end)
            .with_context(|| format!("{begin} has no {end}"))?;
        filled += before;
        if section.text.is_empty() {
            filled += old;
        } else {
            filled += "\n";
            filled += section.text.trim_end();
            filled += "\n";
        }
        filled += &end;
        rest = behind;
        places += 1;
    }
    if places == 0 {
        bail!("it has no place of the form {BEGIN}NAME -->");
    }
    Ok(filled + rest)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn section(name: &'static str, text: &str) -> Section {
        Section {
            name,
            title: "",
            text: text.to_owned(),
        }
    }

    #[test]
    fn places_are_filled_and_the_rest_stays() {
        let document = "a\n<!-- bench:x -->\nold\n<!-- /bench:x -->\nb\n<!-- bench:y -->\nkept\n<!-- /bench:y -->\n";
        let sections = [section("x", "new\n\n"), section("y", ""), section("z", "?")];
        let filled = fill(document, &sections).unwrap();
        assert_eq!(filled, document.replace("old", "new"));
        // Filling again changes nothing.
        assert_eq!(fill(&filled, &sections).unwrap(), filled);
    }

    #[test]
    fn a_place_that_is_none_is_an_error() {
        let sections = [section("x", "new")];
        for document in [
            "nothing",
            "<!-- bench:x -->",
            "<!-- bench:other -->\n<!-- /bench:other -->",
        ] {
            assert!(fill(document, &sections).is_err(), "{document}");
        }
    }
}
