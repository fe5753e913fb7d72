use std::time::Duration;

use kubler_core::policy::starter;
use tempfile::TempDir;

use super::*;

const ORGANIZATION: &str = "01945ecf-0000-4000-8000-000000000001";

fn configuration() -> Configuration {
    let text = format!(
        r#"
url: https://kubler.test:8443
issuers:
  - kind: buildkite
    audience: https://kubler.test:8443
    organizations: [{{id: "{ORGANIZATION}", slug: acme}}]
kubernetes: {{"1.34": {{}}}}
profiles:
  - {{name: ci-small, kubernetes: "1.34"}}
  - {{name: untrusted, kubernetes: "1.34", restricted: true}}
"#
    );
    serde_saphyr::from_str(&text).unwrap()
}

fn folder() -> TempDir {
    let folder = TempDir::new().unwrap();
    for (name, text) in starter(ORGANIZATION, "acme") {
        std::fs::write(folder.path().join(name), text).unwrap();
    }
    folder
}

fn read(folder: &TempDir) -> Result<PolicySet, PolicyLoadError> {
    read_set(folder.path(), &configuration())
}

#[test]
fn the_starter_policies_load() {
    let folder = folder();
    let set = read(&folder).unwrap();
    assert!(set.len() > 5);
    assert_eq!(set.digest().len(), 64);
}

#[test]
fn an_empty_folder_is_a_set_that_denies_and_an_absent_one_is_an_error() {
    let empty = TempDir::new().unwrap();
    assert!(read(&empty).unwrap().is_empty());
    let absent = empty.path().join("absent");
    let error = read_set(&absent, &configuration()).unwrap_err();
    assert!(
        matches!(error, PolicyLoadError::Unreadable { .. }),
        "{error}"
    );
}

#[test]
fn a_bad_change_says_where_it_is_bad_and_the_same_again_wakes_nobody() {
    let folder = folder();
    let policies = Policies::new(read(&folder).unwrap());
    let before = policies.current();
    let watch = policies.watch();
    std::fs::write(
        folder.path().join("bad.cedar"),
        "// one\npermit (principal, action, resource);\n",
    )
    .unwrap();
    let error = read(&folder).unwrap_err();
    let PolicyLoadError::Faulty { faults } = &error else {
        panic!("{error}")
    };
    assert_eq!((faults[0].file.as_str(), faults[0].line), ("bad.cedar", 2));
    assert!(error.to_string().contains("bad.cedar:2"), "{error}");

    std::fs::remove_file(folder.path().join("bad.cedar")).unwrap();
    let same = policies.replace(read(&folder).unwrap());
    assert_eq!(
        same,
        Reloaded::Unchanged {
            digest: before.digest().to_owned()
        }
    );
    assert!(
        Arc::ptr_eq(&before, &policies.current()),
        "nothing changed, so nobody has to ask again"
    );
    assert!(!watch.has_changed().unwrap());
}

#[tokio::test]
async fn a_good_change_is_in_force_and_wakes_whoever_waits() {
    let folder = folder();
    let policies = Policies::new(read(&folder).unwrap());
    let before = policies.current();
    let mut watch = policies.watch();
    let waiting = tokio::spawn(async move {
        watch.changed().await.unwrap();

        watch.borrow().digest().to_owned()
    });
    std::fs::remove_file(folder.path().join("acme.cedar")).unwrap();
    let Reloaded::Changed { before: old, after } = policies.replace(read(&folder).unwrap()) else {
        panic!("nothing changed")
    };
    assert_eq!(old, before.digest());
    assert_eq!(after, policies.current().digest());
    let woken = tokio::time::timeout(Duration::from_secs(10), waiting)
        .await
        .unwrap()
        .unwrap();
    assert_eq!(woken, after);
}

#[test]
fn what_the_operator_states_about_forks_is_in_force_although_no_policy_changed() {
    let folder = folder();
    let policies = Policies::new(read(&folder).unwrap());
    let before = policies.current();
    let mut stated = configuration();
    stated.issuers[0].organizations[0].fork_branches_are_prefixed = true;
    policies.replace(read_set(folder.path(), &stated).unwrap());
    assert!(!Arc::ptr_eq(&before, &policies.current()));
    assert_eq!(before.digest(), policies.current().digest());
}

#[cfg(unix)]
#[test]
fn a_link_may_not_lead_out_of_the_folder() {
    use std::os::unix::fs::symlink;

    let (inside, outside) = (folder(), TempDir::new().unwrap());
    let forbid = "forbid (principal, action, resource);";
    std::fs::write(outside.path().join("else.cedar"), forbid).unwrap();
    symlink(
        outside.path().join("else.cedar"),
        inside.path().join("link.cedar"),
    )
    .unwrap();
    let error = read(&inside).unwrap_err();
    assert!(
        error.to_string().ends_with("leads out of the folder"),
        "{error}"
    );

    // A mounted ConfigMap: links within the folder.
    std::fs::remove_file(inside.path().join("link.cedar")).unwrap();
    std::fs::create_dir(inside.path().join("..data")).unwrap();
    std::fs::write(inside.path().join("..data/link.cedar"), forbid).unwrap();
    symlink("..data/link.cedar", inside.path().join("link.cedar")).unwrap();
    let with_link = read(&inside).unwrap().len();
    assert_eq!(with_link, read(&folder()).unwrap().len() + 1);
}

#[cfg(unix)]
#[test]
fn what_is_no_plain_text_file_is_refused_without_waiting() {
    use std::os::unix::net::UnixListener;

    let folder = folder();
    let odd = folder.path().join("odd.cedar");
    let refused = || read(&folder).unwrap_err().to_string();

    std::fs::create_dir(&odd).unwrap();
    assert!(refused().ends_with("is not a file"));
    std::fs::remove_dir(&odd).unwrap();

    let socket = UnixListener::bind(&odd).unwrap();
    assert!(refused().ends_with("is not a file"));
    drop(socket);
    std::fs::remove_file(&odd).unwrap();

    std::fs::write(&odd, [0xff, 0xfe, b';']).unwrap();
    assert!(refused().ends_with("is not UTF-8 text"));
    std::fs::write(&odd, " ".repeat(POLICY_FILE_BYTES_MAX)).unwrap();
    read(&folder).unwrap();
    std::fs::write(&odd, " ".repeat(POLICY_FILE_BYTES_MAX + 1)).unwrap();
    assert!(refused().contains("is longer than"));
    std::fs::remove_file(&odd).unwrap();

    std::fs::write(folder.path().join(".#odd.cedar"), "not a policy").unwrap();
    std::fs::write(folder.path().join("notes.txt"), "not a policy").unwrap();
    read(&folder).unwrap();
}
