//! CNI network configuration lists: which file is used, and what it says. CNI specification 1.1, section 1.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::NetworkError;

/// Versions whose configuration and results are understood.
const VERSIONS: [&str; 5] = ["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"];
/// CHECK came with 0.4.0.
const VERSIONS_WITHOUT_CHECK: [&str; 2] = ["0.3.0", "0.3.1"];
/// A configuration is a page of text, not a data file.
const MAX_FILE_BYTES: u64 = 1024 * 1024;

/// A network: its plugins run in this order at ADD, and backwards at DEL.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct NetworkList {
    pub(super) cni_version: String,
    pub(super) name: String,
    #[serde(default)]
    pub(super) disable_check: bool,
    /// Each plugin's own object; `type` names its binary.
    pub(super) plugins: Vec<Map<String, Value>>,
}

impl NetworkList {
    /// The first valid configuration of the directory in lexical order, as libcni's users choose it; invalid ones before
    /// it are skipped, and named when there is no valid one at all.
    pub(super) fn load(dir: &Path) -> Result<(PathBuf, Self), NetworkError> {
        let files = configuration_files(dir)?;
        let mut problems = Vec::new();
        for file in files {
            match Self::read(&file) {
                Ok(list) => return Ok((file, list)),
                Err(error) => problems.push(error.to_string()),
            }
        }
        Err(NetworkError::NotConfigured(if problems.is_empty() {
            format!("no *.conflist, *.conf or *.json in {}", dir.display())
        } else {
            problems.join("; ")
        }))
    }

    fn read(file: &Path) -> Result<Self, NetworkError> {
        let bad = |problem: String| NetworkError::BadConfiguration {
            file: file.to_owned(),
            problem,
        };
        let size = fs_err::metadata(file)
            .map_err(|error| bad(error.to_string()))?
            .len();
        if size > MAX_FILE_BYTES {
            return Err(bad(format!("{size} bytes, more than {MAX_FILE_BYTES}")));
        }
        let text = fs_err::read(file).map_err(|error| bad(error.to_string()))?;
        Self::parse(&text).map_err(bad)
    }

    fn parse(text: &[u8]) -> Result<Self, String> {
        let mut value: Map<String, Value> =
            serde_json::from_slice(text).map_err(|error| error.to_string())?;
        if !value.contains_key("plugins") {
            value = single_plugin(value)?;
        }
        let list: Self = serde_json::from_value(Value::Object(value)).map_err(|error| error.to_string())?;
        list.validate()?;
        Ok(list)
    }

    fn validate(&self) -> Result<(), String> {
        if !VERSIONS.contains(&self.cni_version.as_str()) {
            return Err(format!(
                "cniVersion {:?} is none of {}",
                self.cni_version,
                VERSIONS.join(", ")
            ));
        }
        if self.name.is_empty() || self.name.contains('/') {
            return Err(format!("name {:?} is empty or has a slash", self.name));
        }
        if self.plugins.is_empty() {
            return Err("plugins is empty".to_owned());
        }
        for (index, plugin) in self.plugins.iter().enumerate() {
            let kind = plugin_type(plugin);
            if kind.is_empty() || kind.contains('/') {
                return Err(format!("plugins[{index}].type is missing, empty or has a slash"));
            }
        }
        Ok(())
    }

    /// Whether CHECK may be called.
    pub(super) fn allows_check(&self) -> bool {
        !self.disable_check && !VERSIONS_WITHOUT_CHECK.contains(&self.cni_version.as_str())
    }
}

/// The binary's name.
pub(super) fn plugin_type(plugin: &Map<String, Value>) -> &str {
    plugin.get("type").and_then(Value::as_str).unwrap_or_default()
}

/// A `.conf` file holds one plugin that is a list of its own.
fn single_plugin(plugin: Map<String, Value>) -> Result<Map<String, Value>, String> {
    let field = |name: &str| {
        plugin
            .get(name)
            .cloned()
            .ok_or_else(|| format!("{name} is missing"))
    };
    let mut list = Map::new();
    list.insert("cniVersion".to_owned(), field("cniVersion")?);
    list.insert("name".to_owned(), field("name")?);
    list.insert("plugins".to_owned(), Value::Array(vec![Value::Object(plugin)]));
    Ok(list)
}

fn configuration_files(dir: &Path) -> Result<Vec<PathBuf>, NetworkError> {
    let entries = fs_err::read_dir(dir).map_err(|error| NetworkError::NotConfigured(error.to_string()))?;
    let mut files: Vec<PathBuf> = entries
        .filter_map(|entry| entry.ok().map(|entry| entry.path()))
        .filter(|path| {
            path.extension()
                .and_then(|extension| extension.to_str())
                .is_some_and(|extension| ["conf", "conflist", "json"].contains(&extension))
        })
        .collect();
    files.sort();
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIST: &str =
        r#"{"cniVersion":"1.0.0","name":"pods","plugins":[{"type":"bridge"},{"type":"portmap"}]}"#;

    #[test]
    fn the_first_valid_file_in_lexical_order_is_used() {
        let dir = tempfile::tempdir().unwrap();
        fs_err::write(dir.path().join("05-broken.conflist"), "{").unwrap();
        fs_err::write(dir.path().join("10-pods.conflist"), LIST).unwrap();
        fs_err::write(
            dir.path().join("20-other.conflist"),
            LIST.replace("pods", "other"),
        )
        .unwrap();
        fs_err::write(dir.path().join("00-notes.txt"), LIST.replace("pods", "text")).unwrap();
        let (file, list) = NetworkList::load(dir.path()).unwrap();
        assert!(file.ends_with("10-pods.conflist"));
        assert_eq!(list.name, "pods");
    }

    #[test]
    fn a_single_plugin_is_a_list_of_one() {
        let list =
            NetworkList::parse(br#"{"cniVersion":"0.4.0","name":"n","type":"ptp","mtu":1400}"#).unwrap();
        assert_eq!(list.plugins.len(), 1);
        assert_eq!(plugin_type(&list.plugins[0]), "ptp");
        assert!(list.allows_check());
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (text, problem) in [
            (LIST.replace("1.0.0", "0.2.0"), "cniVersion"),
            (LIST.replace("bridge", "../bridge"), "plugins[0].type"),
            (LIST.replace("\"pods\"", "\"\""), "name"),
            (r#"{"cniVersion":"1.0.0","type":"bridge"}"#.to_owned(), "name"),
        ] {
            let error = NetworkList::parse(text.as_bytes()).unwrap_err();
            assert!(error.contains(problem), "{error}");
        }
    }

    #[test]
    fn an_empty_directory_and_a_missing_one_say_so() {
        let dir = tempfile::tempdir().unwrap();
        for path in [dir.path().to_owned(), dir.path().join("missing")] {
            let error = NetworkList::load(&path).unwrap_err();
            assert!(matches!(error, NetworkError::NotConfigured(_)), "{error}");
        }
    }

    #[test]
    fn check_is_for_lists_that_know_it() {
        assert!(NetworkList::parse(LIST.as_bytes()).unwrap().allows_check());
        assert!(
            !NetworkList::parse(LIST.replace("1.0.0", "0.3.1").as_bytes())
                .unwrap()
                .allows_check()
        );
        let disabled = LIST.replace("\"name\"", "\"disableCheck\":true,\"name\"");
        assert!(!NetworkList::parse(disabled.as_bytes()).unwrap().allows_check());
    }
}
