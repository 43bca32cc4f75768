//! Looks into what was built.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use object::build::elf::{Builder, SectionData};
use object::elf::{self, FileHeader64};
use object::read::elf::{ElfFile64, ProgramHeader as _};
use object::{Architecture, Endianness, Object as _, ObjectSection as _, ObjectSymbol as _};
use object::{SectionKind, SymbolKind};

/// What a BPF object must have besides programs: the kernel asks for the licence, and the loader for the rest.
const NEEDED_SECTIONS: [&str; 3] = ["license", "maps", ".BTF"];

/// Holds the functions that programs share; no program of its own.
const SHARED_FUNCTIONS: &str = ".text";

/// The programs in the BPF object at `path`; an error if it isn't one that the kernel could load.
pub fn bpf_programs(path: &Path) -> Result<Vec<String>> {
    let data = fs::read(path).with_context(|| path.display().to_string())?;
    bpf_programs_in(&data).with_context(|| path.display().to_string())
}

/// The same of an object in memory.
pub fn bpf_programs_in(data: &[u8]) -> Result<Vec<String>> {
    let object = ElfFile64::<Endianness>::parse(data).context("not an ELF object")?;
    ensure!(
        object.architecture() == Architecture::Bpf,
        "compiled for {:?} instead of BPF",
        object.architecture()
    );
    for name in NEEDED_SECTIONS {
        ensure!(
            object
                .section_by_name(name)
                .is_some_and(|section| section.size() > 0),
            "no section {name}"
        );
    }
    let mut programs = Vec::new();
    for section in object.sections() {
        if section.kind() != SectionKind::Text || section.name() == Ok(SHARED_FUNCTIONS) {
            continue;
        }
        let functions = object.symbols().filter(|symbol| {
            symbol.kind() == SymbolKind::Text && symbol.section_index() == Some(section.index())
        });
        for function in functions {
            programs.push(function.name().context("a symbol's name")?.to_owned());
        }
    }
    ensure!(!programs.is_empty(), "no program in it");
    Ok(programs)
}

/// The BPF object without debug information, which is most of it: the kernel and the loader read types and lines from the sections `.BTF`
/// and `.BTF.ext`.
pub fn without_debug_information(data: &[u8]) -> Result<Vec<u8>> {
    let mut object = Builder::read(data).context("not an ELF object")?;
    for section in &mut object.sections {
        let name = section.name.as_slice();
        section.delete = [".debug", ".rel.debug"]
            .iter()
            .any(|begin| name.starts_with(begin.as_bytes()));
    }
    // Symbols and relocations that name what is gone.
    object.delete_orphans();
    // LLVM keeps the names of sections with those of symbols, and the builder doesn't.
    let names = object.sections.add();
    names.name = b".shstrtab"[..].into();
    names.sh_type = elf::SHT_STRTAB;
    names.data = SectionData::SectionString;
    let mut shorter = Vec::new();
    object
        .write(&mut shorter)
        .context("writing the object without debug information")?;
    Ok(shorter)
}

/// An error if the program at `path` needs anything of the machine that it is started on.
pub fn ensure_static(path: &Path) -> Result<()> {
    let data = fs::read(path).with_context(|| path.display().to_string())?;
    ensure!(
        is_static(&data).with_context(|| path.display().to_string())?,
        "{} is not a static executable: it would not start in an empty container image",
        path.display()
    );
    Ok(())
}

fn is_static(data: &[u8]) -> Result<bool> {
    let file: ElfFile64<'_, Endianness> =
        object::read::elf::ElfFile::<FileHeader64<Endianness>>::parse(data)
            .context("not an ELF executable")?;
    // Only a program that asks for a dynamic loader gets one.
    Ok(file
        .elf_program_headers()
        .iter()
        .all(|header| header.p_type(file.endian()) != elf::PT_INTERP))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_test_is_no_bpf_object() -> Result<()> {
        let error = bpf_programs(&std::env::current_exe()?).expect_err("it isn't");
        assert!(format!("{error:#}").contains("instead of BPF"), "{error:#}");
        Ok(())
    }

    #[test]
    fn a_dynamic_program_is_told_from_a_static_one() -> Result<()> {
        // The shell of any distribution with a package manager is a dynamic program.
        assert!(!is_static(&fs::read("/bin/sh")?)?);
        let this = is_static(&fs::read(std::env::current_exe()?)?)?;
        assert_eq!(this, cfg!(target_feature = "crt-static"));
        Ok(())
    }
}
