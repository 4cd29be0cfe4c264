#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::*;

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, Default)]
#[serde(default)]
struct Config {
    name: String,
    listen: Listen,
    admin: Listen,
    storage: Storage,
    auth: Auth,
    labels: BTreeMap<String, u16>,
}

/// `Config::default` gives `admin` another port than `Listen::default` does.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Listen {
    host: String,
    port: u16,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
struct Storage {
    journal_file_bytes: ByteSize,
    flush_interval: HumanDuration,
    disks: Vec<String>,
    ratios: Vec<f64>,
    direct: bool,
    mode: Mode,
    limit: Option<u32>,
    weight: f64,
}

#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Mode {
    Fast,
    Safe,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, Default)]
#[serde(default)]
struct Auth {
    password: Secret<String>,
    token: Option<Secret<String>>,
}

impl Default for Listen {
    fn default() -> Self {
        Self {
            host: "127.0.0.1".to_owned(),
            port: 7450,
        }
    }
}

impl Default for Storage {
    fn default() -> Self {
        Self {
            journal_file_bytes: ByteSize::mib(64),
            flush_interval: HumanDuration::millis(2),
            disks: vec!["a".to_owned()],
            ratios: Vec::new(),
            direct: true,
            mode: Mode::Safe,
            limit: None,
            weight: 1.0,
        }
    }
}

impl Validate for Storage {
    fn validate(&self) -> Result<(), ConfigError> {
        if self.journal_file_bytes < ByteSize::mib(1) {
            let reason = format!("{} is below the minimum of 1MiB", self.journal_file_bytes);
            return Err(ConfigError::invalid("journal_file_bytes", reason));
        }
        Ok(())
    }
}

impl Validate for Config {
    fn validate(&self) -> Result<(), ConfigError> {
        self.storage.validate().map_err(|error| error.under("storage"))
    }
}

fn file(text: &str) -> Layers {
    Layers::new().file_text(Path::new("node.toml"), text).unwrap()
}

fn vars(vars: &[(&str, &str)]) -> Vec<(OsString, OsString)> {
    vars.iter()
        .map(|(name, value)| (name.into(), value.into()))
        .collect()
}

fn env(pairs: &[(&str, &str)]) -> Layers {
    Layers::new().env(vars(pairs), &[]).unwrap()
}

fn refusal(layers: Layers) -> String {
    layers.load::<Config>().unwrap_err().to_string()
}

#[test]
fn without_any_source_the_defaults_apply() {
    assert_eq!(Layers::new().load::<Config>().unwrap(), Config::default());
}

#[test]
fn flags_win_over_environment_over_file_over_defaults() {
    let config: Config =
        file("name = 'file'\n[storage]\njournal_file_bytes = '1MiB'\nflush_interval = '1s'\nlimit = 1\n")
            .flags(["storage.limit=3"])
            .unwrap()
            .env(
                vars(&[
                    ("FOREBAY_STORAGE__LIMIT", "2"),
                    ("FOREBAY_STORAGE__FLUSH_INTERVAL", "2s"),
                ]),
                &[],
            )
            .unwrap()
            .load()
            .unwrap();
    assert_eq!(config.name, "file");
    assert_eq!(config.storage.journal_file_bytes, ByteSize::mib(1));
    assert_eq!(config.storage.flush_interval, HumanDuration::secs(2));
    assert_eq!(config.storage.limit, Some(3));
    assert!(config.storage.direct);
}

#[test]
fn a_part_set_in_one_key_keeps_the_other_defaults_of_its_parent() {
    // The parent's default for `admin` differs from the default of its type: the type's must not
    // come through when only one of its keys is set.
    #[derive(Debug, Serialize, Deserialize)]
    struct Two {
        admin: Listen,
    }
    impl Default for Two {
        fn default() -> Self {
            Self {
                admin: Listen {
                    host: "::1".to_owned(),
                    port: 7451,
                },
            }
        }
    }
    impl Validate for Two {
        fn validate(&self) -> Result<(), ConfigError> {
            Ok(())
        }
    }
    let two: Two = Layers::new()
        .flags(["admin.host=0.0.0.0"])
        .unwrap()
        .load()
        .unwrap();
    assert_eq!(
        two.admin,
        Listen {
            host: "0.0.0.0".to_owned(),
            port: 7451
        }
    );
}

#[test]
fn the_environment_is_read_as_the_type_of_each_key() {
    let config: Config = env(&[
        ("PATH", "/bin"),
        ("FOREBAY_NAME", "4096"),
        ("FOREBAY_LISTEN__PORT", "9_000"),
        ("FOREBAY_STORAGE__JOURNAL_FILE_BYTES", "128MiB"),
        ("FOREBAY_STORAGE__DISKS", "a, b,c"),
        ("FOREBAY_STORAGE__RATIOS", "[0.5, 1]"),
        ("FOREBAY_STORAGE__DIRECT", "false"),
        ("FOREBAY_STORAGE__MODE", "fast"),
        ("FOREBAY_STORAGE__WEIGHT", "2"),
        ("FOREBAY_STORAGE__LIMIT", ""),
        ("FOREBAY_LABELS__Z", "3"),
        ("FOREBAY_AUTH__PASSWORD", "12345"),
    ])
    .load()
    .unwrap();
    assert_eq!(config.name, "4096");
    assert_eq!(config.listen.port, 9_000);
    assert_eq!(config.storage.journal_file_bytes, ByteSize::mib(128));
    assert_eq!(config.storage.disks, ["a", "b", "c"]);
    assert_eq!(config.storage.ratios, [0.5, 1.0]);
    assert!(!config.storage.direct);
    assert_eq!(config.storage.mode, Mode::Fast);
    assert_eq!((config.storage.weight, config.storage.limit), (2.0, None));
    assert_eq!(config.labels, BTreeMap::from([("z".to_owned(), 3)]));
    assert_eq!(config.auth.password.expose(), "12345");
}

#[test]
fn a_map_is_read_from_inline_toml() {
    let config: Config = env(&[("FOREBAY_LABELS", "{ x = 1, y = 2 }")]).load().unwrap();
    assert_eq!(
        config.labels,
        BTreeMap::from([("x".to_owned(), 1), ("y".to_owned(), 2)])
    );
}

#[test]
fn a_key_set_both_as_a_whole_and_in_part_is_refused() {
    let whole_and_part = [("FOREBAY_LABELS__Z", "3"), ("FOREBAY_LABELS", "{ x = 1 }")];
    let error = Layers::new().env(vars(&whole_and_part), &[]).unwrap_err();
    assert_eq!(
        error.to_string(),
        "environment variable FOREBAY_LABELS__Z: one sets a key as a whole, another a key below it"
    );
    for pair in [["labels={}", "labels.z=3"], ["labels.z=3", "labels={}"]] {
        assert!(matches!(Layers::new().flags(pair), Err(ConfigError::Flag { .. })));
    }
    let again = Layers::new().flags(["name=a", "name=b"]).unwrap();
    assert_eq!(again.load::<Config>().unwrap().name, "b");
}

#[test]
fn reserved_variables_are_passed_over() {
    let layers = Layers::new()
        .env(vars(&[("FOREBAY_CONFIG", "x")]), &["FOREBAY_CONFIG"])
        .unwrap();
    assert!(layers.load::<Config>().is_ok());
}

#[test]
fn an_unknown_key_is_refused_with_its_name_its_source_and_the_nearest_key() {
    assert_eq!(
        refusal(file(
            "name = 'x'\n\n[storage]\nlimit = 1\njornal_file_bytes = '1MiB'\n"
        )),
        "unknown key storage.jornal_file_bytes (node.toml:5), \
         did you mean storage.journal_file_bytes?"
    );
    assert_eq!(
        refusal(env(&[("FOREBAY_STORAGE__DIRECTT", "1")])),
        "unknown key storage.directt (environment variable FOREBAY_STORAGE__DIRECTT), \
         did you mean storage.direct?"
    );
    assert_eq!(
        refusal(Layers::new().flags(["storag.direct=true"]).unwrap()),
        "unknown key storag (flag storag.direct), did you mean storage?"
    );
    assert_eq!(
        refusal(file("flush_interval = '1s'")),
        "unknown key flush_interval (node.toml:1), did you mean storage.flush_interval?"
    );
    assert_eq!(
        refusal(file("colour = 'red'")),
        "unknown key colour (node.toml:1)"
    );
}

#[test]
fn a_wrong_type_is_refused_with_key_value_source_and_expectation() {
    assert_eq!(
        refusal(file("[listen]\nport = 'http'")),
        "bad value for listen.port: \"http\" (node.toml:2): expected u16"
    );
    assert_eq!(
        refusal(env(&[("FOREBAY_LISTEN__PORT", "70000")])),
        "bad value for listen.port: 70000 (environment variable FOREBAY_LISTEN__PORT): \
         expected u16"
    );
    assert_eq!(
        refusal(Layers::new().flags(["storage.journal_file_bytes=64MB"]).unwrap()),
        "bad value for storage.journal_file_bytes: \"64MB\" (flag storage.journal_file_bytes): \
         \"64MB\" needs one of the units B, KiB, MiB, GiB, TiB, PiB"
    );
    assert_eq!(
        refusal(file("storage.flush_interval = 10")),
        "bad value for storage.flush_interval: 10 (node.toml:1): \
         expected a duration such as \"200ms\""
    );
    assert_eq!(
        refusal(file("storage.mode = 'quick'")),
        "bad value for storage.mode: \"quick\" (node.toml:1): expected one of fast, safe"
    );
    assert_eq!(
        refusal(file("storage.ratios = [1.0,\n'x']")),
        "bad value for storage.ratios[1]: \"x\" (node.toml:2): expected f64"
    );
    assert_eq!(
        refusal(env(&[("FOREBAY_STORAGE", "x")])),
        "bad value for storage: \"x\" (environment variable FOREBAY_STORAGE): \
         expected struct Storage"
    );
    assert_eq!(
        refusal(file("storage.limit = 99999999999999999999999999999999999999999")),
        format!(
            "bad value for storage.limit: {} (node.toml:1): expected u32",
            i128::MAX
        )
    );
}

#[test]
fn a_key_without_a_default_must_be_set() {
    #[derive(Debug, Serialize, Deserialize, Default)]
    struct Strict {
        node: Option<Listen>,
    }
    impl Validate for Strict {
        fn validate(&self) -> Result<(), ConfigError> {
            Ok(())
        }
    }
    let error = file("node.host = 'x'").load::<Strict>().unwrap_err();
    assert_eq!(error.to_string(), "missing key node.port");
}

#[test]
fn validation_names_the_key_and_where_it_was_set() {
    assert_eq!(
        refusal(file("[storage]\njournal_file_bytes = 4096")),
        "bad value for storage.journal_file_bytes (node.toml:2): 4KiB is below the minimum of 1MiB"
    );
}

#[test]
fn malformed_sources_are_refused() {
    let parse = |text| Layers::new().file_text(Path::new("node.toml"), text);
    let error = parse("name = 'x'\nlisten = = 3\n").unwrap_err().to_string();
    assert!(error.starts_with("node.toml:2: "), "{error}");
    let error = parse("name = 'x'\nname = 'y'\n").unwrap_err().to_string();
    assert!(error.starts_with("node.toml:2: "), "{error}");

    let missing = Layers::new().file(Path::new("no/such/file.toml")).unwrap_err();
    assert_eq!(
        missing.to_string(),
        "cannot read configuration file no/such/file.toml"
    );

    for flag in ["storage.limit", "=1", "storage..limit=1", ".limit=1"] {
        let error = Layers::new().flags([flag]).unwrap_err();
        assert!(matches!(error, ConfigError::Flag { .. }), "{flag}: {error}");
    }
    for name in ["FOREBAY_", "FOREBAY___X", "FOREBAY_STORAGE__"] {
        let error = Layers::new()
            .env(vars(&[(name, "1")]), &[])
            .unwrap_err()
            .to_string();
        assert!(
            error.starts_with(&format!("environment variable {name}: ")),
            "{error}"
        );
    }
    let bytes = vec![(OsString::from("FOREBAY_NAME"), OsString::from_vec(vec![0xff]))];
    assert!(matches!(
        Layers::new().env(bytes, &[]),
        Err(ConfigError::Env { .. })
    ));
    let error = refusal(env(&[("FOREBAY_AUTH", "{ password = 'hunter2'")]));
    assert!(
        error.contains("FOREBAY_AUTH") && !error.contains("hunter2"),
        "{error}"
    );
}

#[test]
fn a_file_on_disk_is_read() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("node.toml");
    std::fs::write(&path, "name = 'n1'").unwrap();
    assert_eq!(
        Layers::new().file(&path).unwrap().load::<Config>().unwrap().name,
        "n1"
    );
}

#[test]
fn secrets_appear_nowhere() {
    let config: Config = file("[auth]\npassword = 'hunter2'\ntoken = 'hunter3'")
        .load()
        .unwrap();
    assert_eq!(config.auth.password.expose(), "hunter2");
    let shown = format!("{config:?} {} {}", config.auth.password, effective_toml(&config));
    assert!(!shown.contains("hunter"), "{shown}");
    assert!(effective_toml(&config).contains("password = \"***\""));

    let wrong_type = refusal(file("[auth]\npassword = 31337"));
    assert_eq!(
        wrong_type,
        "bad value for auth.password: *** (node.toml:2): expected a string"
    );
}

#[test]
fn the_hidden_form_of_a_secret_is_not_taken_for_one() {
    let text = effective_toml(&Config::default());
    assert_eq!(
        refusal(file(&text)),
        "bad value for auth.password: *** (node.toml:8): \
         this is the hidden form of a secret, not a secret"
    );
}

#[test]
fn the_effective_configuration_reads_back_to_the_same() {
    let config: Config = file("name = 'n'\n[storage]\nlimit = 5\nmode = 'fast'\n[labels]\na = 1")
        .load()
        .unwrap();
    let text = effective_toml(&config).replace("password = \"***\"\n", "");
    assert_eq!(file(&text).load::<Config>().unwrap(), config);
}

#[test]
fn an_enum_with_data_is_read_from_a_table_of_one_key() {
    #[derive(Debug, PartialEq, Serialize, Deserialize, Default)]
    struct Holder {
        store: Store,
    }
    #[derive(Debug, PartialEq, Serialize, Deserialize, Default)]
    #[serde(rename_all = "lowercase")]
    enum Store {
        #[default]
        Embedded,
        Etcd {
            hosts: Vec<String>,
        },
    }
    impl Validate for Holder {
        fn validate(&self) -> Result<(), ConfigError> {
            Ok(())
        }
    }
    let holder: Holder = file("[store.etcd]\nhosts = ['a', 'b']").load().unwrap();
    assert_eq!(
        holder.store,
        Store::Etcd {
            hosts: vec!["a".to_owned(), "b".to_owned()]
        }
    );
    let error = file("[store.etcd]\nhost = 'a'").load::<Holder>().unwrap_err();
    assert_eq!(
        error.to_string(),
        "unknown key store.etcd.host (node.toml:2), did you mean store.etcd.hosts?"
    );
    let error = file("store = 'zookeeper'").load::<Holder>().unwrap_err();
    assert!(
        error.to_string().contains("expected one of embedded, etcd"),
        "{error}"
    );
}
