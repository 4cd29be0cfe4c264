//! Five rounds of real faults, with whatever this machine lets us break.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::path::Path;
use std::time::Duration;

use forebay_faults::abilities::Abilities;
use forebay_faults::round::{Settings, run};

/// Seeds of the rounds, chosen so that among them every kind of process is killed and paused.
const SEEDS: [u64; 5] = [11, 12, 13, 14, 15];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn five_rounds_of_faults_break_no_promise() {
    let folder = std::env::temp_dir().join(format!("forebay-faults-test-{}", std::process::id()));
    let settings = Settings {
        binary: Path::new(env!("CARGO_BIN_EXE_forebay-under-faults")).to_owned(),
        folder: folder.clone(),
        length: Duration::from_secs(8),
        abilities: Abilities::probe(),
        keep: false,
    };
    for missing in settings.abilities.missing() {
        println!("left out on this machine: {missing}");
    }
    for seed in SEEDS {
        let outcome = run(&settings, seed).await.unwrap();
        println!("{}", outcome.line());
        assert!(
            outcome.is_clean(),
            "seed {seed}: {:#?}\nnotes {:#?}, exits {:#?}, logs and history in {:?}",
            outcome.failures,
            outcome.notes,
            outcome.exits,
            outcome.kept
        );
        assert!(
            outcome.acked > 500,
            "seed {seed}: too little was written to prove anything"
        );
    }
    std::fs::remove_dir_all(folder).unwrap();
}
