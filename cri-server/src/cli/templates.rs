//! `clearpod templates`: what pods of the running daemon go on from, as its verbose status tells.

use std::{io::Write, process::ExitCode};

use anyhow::Context as _;
use proto::cri::v1 as cri;

use super::client;
use crate::{config::Config, template::TemplateView};

/// Digits of a name that are shown.
const DIGITS: usize = 12;

pub(super) async fn run(config: &Config, json: bool, out: &mut dyn Write) -> anyhow::Result<ExitCode> {
    let mut client = client::connect(config).await?;
    let answer = client.status(cri::StatusRequest { verbose: true }).await;
    let info = answer.map_err(client::told)?.into_inner().info;
    let text = info
        .get("templates")
        .context("the daemon knows of no templates")?;
    let templates: Vec<TemplateView> =
        serde_json::from_str(text).context("the daemon's list of templates")?;
    if json {
        serde_json::to_writer_pretty(&mut *out, &templates)?;
        writeln!(out)?;
    } else {
        table(&templates, out)?;
    }
    Ok(ExitCode::SUCCESS)
}

fn table(templates: &[TemplateView], out: &mut dyn Write) -> anyhow::Result<()> {
    writeln!(
        out,
        "{:<DIGITS$}  {:>10}  {:>11}  {:>6}  {:>9}  {:>9}  {:>7}  {:>6}  STATE",
        "TEMPLATE", "MEMORY MIB", "HOTPLUG MIB", "VCPUS", "FILES MIB", "TAKES MIB", "MADE MS", "FORKS"
    )?;
    for template in templates {
        let name = template.origin.as_deref().unwrap_or_default();
        let files = template.files.as_ref();
        let number = |number: Option<u64>| number.map(|number| number.to_string()).unwrap_or_default();
        let shape = template.shape;
        let why = template.why.as_ref().map(|why| format!(": {why}"));
        writeln!(
            out,
            "{:<DIGITS$}  {:>10}  {:>11}  {:>6}  {:>9}  {:>9}  {:>7}  {:>6}  {}{}",
            name.get(..DIGITS).unwrap_or(name),
            shape.memory_mib,
            shape.memory_hotplug_mib,
            format!("{}-{}", shape.vcpus, shape.vcpus_possible),
            number(files.map(|files| files.length_bytes >> 20)),
            number(files.map(|files| files.allocated_bytes >> 20)),
            number(files.map(|files| files.took_ms)),
            number(files.map(|files| files.forks)),
            template.state,
            why.unwrap_or_default()
        )?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_is_a_line_with_its_size_and_what_became_of_it() {
        let text = r#"[
            {"origin": "0123456789abcdef", "memory_mib": 512, "memory_hotplug_mib": 1024, "vcpus": 1, "vcpus_possible": 4,
             "state": "ready", "why": null,
             "files": {"length_bytes": 537919488, "allocated_bytes": 41943040, "made_at": 1, "took_ms": 900, "forks": 3}},
            {"origin": null, "memory_mib": 128, "memory_hotplug_mib": 0, "vcpus": 2, "vcpus_possible": 2,
             "state": "failed", "why": "full", "files": null}]"#;
        let templates: Vec<TemplateView> = serde_json::from_str(text).unwrap();
        let mut out = Vec::new();
        table(&templates, &mut out).unwrap();
        let out = String::from_utf8(out).unwrap();
        let words: Vec<Vec<&str>> = out
            .lines()
            .map(|line| line.split_whitespace().collect())
            .collect();
        assert_eq!(
            words[1],
            [
                "0123456789ab",
                "512",
                "1024",
                "1-4",
                "513",
                "40",
                "900",
                "3",
                "ready"
            ]
        );
        assert_eq!(words[2], ["128", "0", "2-2", "failed:", "full"]);
    }
}
