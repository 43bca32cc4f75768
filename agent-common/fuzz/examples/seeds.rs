//! Writes the targets' first inputs to `corpus`: the captured streams, whole and in part, and random choices.

use std::fs;
use std::io::Result;
use std::path::{Path, PathBuf};

fn main() -> Result<()> {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut captures = Vec::new();
    for entry in here.join("../../tests/fixtures/captures").read_dir()? {
        let path = entry?.path();
        if path.extension().is_some_and(|e| e == "json") {
            captures.push(path);
        }
    }
    let mut written = 0;
    let mut write = |target: &str, name: &str, input: &[u8]| -> Result<()> {
        let dir: PathBuf = here.join("corpus").join(target);
        fs::create_dir_all(&dir)?;
        written += 1;
        fs::write(dir.join(format!("seed-{name}")), input)
    };
    for path in &captures {
        let name = path.file_stem().unwrap_or_default().to_string_lossy();
        let fixture: serde_json::Value = serde_json::from_str(&fs::read_to_string(path)?)?;
        let stream: Vec<u8> = fixture["chunks"]
            .as_array()
            .into_iter()
            .flatten()
            .flat_map(|chunk| octets(chunk.as_str().unwrap_or_default()))
            .collect();
        for len in [200, 500, 1500] {
            let part = &stream[..stream.len().min(len)];
            // How it is cut comes first: not at all, and somehow.
            for cuts in [&[][..], &[40, 0, 0, 200, 90, 120, 10, 30, 250, 3]] {
                let name = format!("{name}-{len}-{}", cuts.len());
                let mut input = vec![cuts.len() as u8];
                input.extend(cuts);
                let head = input.len();
                input.extend(&part[24.min(part.len())..]);
                write("walk", &name, &input)?;
                // From the beginning, as a connection that is new.
                input.truncate(head);
                input.push(0);
                input.extend(part);
                write("garbage", &name, &input)?;
            }
        }
    }
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    for len in [16, 64, 256, 512, 1024] {
        let choices: Vec<u8> = (0..len)
            .map(|_| {
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                (state >> 32) as u8
            })
            .collect();
        write("structured", &len.to_string(), &choices)?;
        write("late", &len.to_string(), &choices)?;
    }
    println!("{written} inputs in {}", here.join("corpus").display());
    Ok(())
}

fn octets(hex: &str) -> Vec<u8> {
    (0..hex.len() / 2)
        .filter_map(|i| u8::from_str_radix(hex.get(2 * i..2 * i + 2)?, 16).ok())
        .collect()
}
