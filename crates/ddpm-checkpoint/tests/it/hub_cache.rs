//! Models of the Hub without a network: found in the cache that its clients keep, or said not to be there.

use std::collections::HashMap;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

use ddpm_checkpoint::{Hub, HubName, Weights, resolve_model_as};

use crate::{assert_same, message, tiny_pipeline};

/// A cache that forbids the network.
pub(crate) fn offline(cache: &Path) -> Hub {
    Hub {
        cache: cache.to_owned(),
        endpoint: "http://127.0.0.1:9".to_owned(),
        token: None,
        offline: true,
    }
}

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

#[test]
fn a_model_in_the_cache_is_found_by_branch_and_by_commit() {
    let cache = tempfile::tempdir().unwrap();
    let folder = cache.path().join("models--someone--tiny");
    let snapshot = folder.join("snapshots").join(COMMIT);
    tiny_pipeline(0).save(&snapshot).unwrap();
    fs::create_dir_all(folder.join("refs")).unwrap();
    fs::write(folder.join("refs/main"), COMMIT).unwrap();
    for name in ["someone/tiny".to_owned(), format!("someone/tiny@{COMMIT}")] {
        let name: HubName = name.parse().unwrap();
        let found = name
            .resolve(&offline(cache.path()), &mut |_, _, _| ())
            .unwrap();
        assert_eq!((&found.folder, found.commit.as_str()), (&snapshot, COMMIT));
        assert_eq!(
            found.to_string(),
            format!("{name}, revision {COMMIT} as the cache has it: HF_HUB_OFFLINE is set")
        );
        let model = resolve_model_as(&found.folder, &Default::default()).unwrap();
        assert_same(
            &model.load(&Weights::Ema).unwrap().weights,
            &tiny_pipeline(0).weights,
        );
    }
    // A commit that leads out of the folder is none.
    fs::write(folder.join("refs/main"), "../../elsewhere").unwrap();
    let name: HubName = "someone/tiny".parse().unwrap();
    let refused = name.resolve(&offline(cache.path()), &mut |_, _, _| ());
    assert_eq!(
        message(refused, cache.path()),
        "model `someone/tiny` of the Hugging Face Hub: it is not in the cache FOLDER/models--someone--tiny, and \
         HF_HUB_OFFLINE is set"
    );
}

#[test]
fn the_environment_says_where_and_whom_to_ask() {
    let home = tempfile::tempdir().unwrap();
    fs::create_dir_all(home.path().join(".cache/huggingface")).unwrap();
    fs::write(home.path().join(".cache/huggingface/token"), "hf_file\n").unwrap();
    let of = |pairs: &[(&str, &str)]| {
        let mut variables: HashMap<String, OsString> = HashMap::new();
        variables.insert("HOME".to_owned(), home.path().into());
        for (name, value) in pairs {
            variables.insert((*name).to_owned(), value.into());
        }
        Hub::of(|name| variables.get(name).cloned()).unwrap()
    };
    let plain = Hub {
        cache: home.path().join(".cache/huggingface/hub"),
        endpoint: "https://huggingface.co".to_owned(),
        token: Some("hf_file".to_owned()),
        offline: false,
    };
    assert_eq!(of(&[]), plain);
    let other = of(&[
        ("HF_HOME", "/there"),
        ("HF_TOKEN", "hf_said"),
        ("HF_ENDPOINT", "http://mirror"),
        ("HF_HUB_OFFLINE", "true"),
    ]);
    assert_eq!(
        (other.cache, other.offline),
        (PathBuf::from("/there/hub"), true)
    );
    assert_eq!(
        (other.endpoint.as_str(), other.token.as_deref()),
        ("http://mirror", Some("hf_said"))
    );
    assert_eq!(
        of(&[("HF_HOME", "/there"), ("HF_HUB_CACHE", "/here")]).cache,
        PathBuf::from("/here")
    );
    assert!(!of(&[("HF_HUB_OFFLINE", "0")]).offline);
    assert!(Hub::of(|_| None).is_err());
}

#[cfg(not(feature = "hub"))]
#[test]
fn without_the_feature_the_error_says_how_to_get_it() {
    let cache = tempfile::tempdir().unwrap();
    let hub = Hub {
        offline: false,
        ..offline(cache.path())
    };
    let name: HubName = "someone/tiny@v2".parse().unwrap();
    assert_eq!(
        message(name.resolve(&hub, &mut |_, _, _| ()), cache.path()),
        "model `someone/tiny@v2` of the Hugging Face Hub: there is no such folder, nor is it in the cache \
         FOLDER/models--someone--tiny; this program was built without the feature `hub`: with `cargo run --release \
         --features hub -p ddpm-sample -- --model someone/tiny@v2` it is fetched"
    );
}
