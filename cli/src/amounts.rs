//! Amounts of a machine's resources: `cpu=1.5,memory=2GiB,disk=10GiB,gpus=1`.

use kiln_proto::common::v1::Resources;

/// Names of the amounts, as options and workflow files have them.
pub const NAMES: [&str; 4] = ["cpu", "memory", "disk", "gpus"];

/// A list of `name=amount` behind each other.
///
/// # Errors
/// What is wrong with it.
pub fn parse(text: &str) -> Result<Resources, String> {
    let mut resources = Resources::default();
    let mut seen = Vec::new();
    for part in text.split(',') {
        let (name, amount) = part
            .split_once('=')
            .ok_or_else(|| format!("{part:?} is no NAME=AMOUNT; names are {}", NAMES.join(", ")))?;
        let name = name.trim();
        if seen.contains(&name) {
            return Err(format!("{name} is there twice"));
        }
        seen.push(name);
        set(&mut resources, name, amount.trim())?;
    }
    Ok(resources)
}

/// Sets one amount.
///
/// # Errors
/// If there is none of that name, or it cannot be read.
pub fn set(resources: &mut Resources, name: &str, amount: &str) -> Result<(), String> {
    match name {
        "cpu" => resources.cpu_millis = millis(amount).ok_or_else(|| wrong(name, amount, "2, 0.5 or 500m"))?,
        "memory" => resources.memory_bytes = bytes(amount).ok_or_else(|| wrong(name, amount, "512MiB or 2GiB"))?,
        "disk" => resources.disk_bytes = bytes(amount).ok_or_else(|| wrong(name, amount, "512MiB or 10GiB"))?,
        "gpus" => {
            let count = amount.parse().ok().filter(|count: &i32| *count >= 0);
            resources.gpus = count.ok_or_else(|| wrong(name, amount, "1"))?;
        }
        other => return Err(format!("{other:?} is none of {}", NAMES.join(", "))),
    }
    Ok(())
}

fn wrong(name: &str, amount: &str, example: &str) -> String {
    format!("{name}: {amount:?} is no amount such as {example}")
}

/// Processors, or thousandths of one with an `m`.
fn millis(text: &str) -> Option<i64> {
    match text.strip_suffix('m') {
        Some(millis) => whole(millis.parse().ok()?, 1.0),
        None => whole(text.parse().ok()?, 1000.0),
    }
}

fn bytes(text: &str) -> Option<i64> {
    const UNITS: [(&str, f64); 10] = [
        ("KiB", 1024.0),
        ("MiB", 1_048_576.0),
        ("GiB", 1_073_741_824.0),
        ("TiB", 1_099_511_627_776.0),
        ("kB", 1e3),
        ("KB", 1e3),
        ("MB", 1e6),
        ("GB", 1e9),
        ("TB", 1e12),
        ("B", 1.0),
    ];
    let (number, factor) =
        UNITS.iter().find_map(|(unit, factor)| Some((text.strip_suffix(unit)?, *factor))).unwrap_or((text, 1.0));
    whole(number.trim().parse().ok()?, factor)
}

fn whole(number: f64, factor: f64) -> Option<i64> {
    let amount = (number * factor).round();
    // Far above any machine, far below where numbers lose their units.
    (0.0..9e15).contains(&amount).then_some(amount as i64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts_have_units() {
        let parsed = parse("cpu=1.5,memory=2GiB, disk=10 GB,gpus=1").unwrap();
        let expected = Resources { cpu_millis: 1500, memory_bytes: 2 << 30, disk_bytes: 10_000_000_000, gpus: 1 };
        assert_eq!(parsed, expected);
        assert_eq!(parse("cpu=250m").unwrap().cpu_millis, 250);
        assert_eq!(parse("memory=1000").unwrap().memory_bytes, 1000);
        for bad in ["", "cpu", "cpu=", "cpu=-1", "cpu=NaN", "memory=2 apples", "gpus=0.5", "ram=1", "cpu=1,cpu=2"] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }
}
