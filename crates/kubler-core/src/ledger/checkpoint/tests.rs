use super::*;

// The keys and the note that implementations of signed notes test each other with.
const NEUMANN: &str = "PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW";
const NEUMANN_PRIVATE: &str =
    "PRIVATE+KEY+PeterNeumann+c74f20a3+AYEKFALVFGyNhPJEMzD1QIDr+Y7hfZx09iUvxdXHKDFz";
const NEUMANN_NOTE: &str = "If you think cryptography is the answer to your problem,\n\
    then you don't know what your problem is.\n\
    \n\
    — PeterNeumann x08go/ZJkuBS9UG/SffcvIAQxVBtiFupLLr8pAcElZInNIuGUgYN1FFYC2pZSNXgKvqfqdngotpRZb6KE6RyyBwJnAM=\n";

fn key(name: &str, byte: u8) -> PrivateKey {
    PrivateKey::from_random(name, &Zeroizing::new([byte; 32])).unwrap()
}

#[test]
fn l5_keys_and_signatures_are_those_of_other_implementations() {
    let public = PublicKey::parse(NEUMANN).unwrap();
    assert_eq!(public.to_string(), NEUMANN);
    let private = PrivateKey::parse(&SecretString::from(NEUMANN_PRIVATE)).unwrap();
    assert_eq!(private.public(), &public);
    assert_eq!(private.to_text().expose_secret().trim(), NEUMANN_PRIVATE);

    let note = Note::parse(NEUMANN_NOTE).unwrap();
    assert!(
        public
            .key
            .verify_strict(note.body.as_bytes(), &note.signatures[0].signature)
            .is_ok()
    );
    assert_eq!(
        private.key.sign(note.body.as_bytes()),
        note.signatures[0].signature
    );
    assert_eq!(
        public.open(NEUMANN_NOTE),
        Err(NoteError::NotACheckpoint("it has fewer than three lines"))
    );
}

#[test]
fn l5_a_checkpoint_opens_with_its_key_and_no_other() {
    let ours = key("kubler.example/ledger", 1);
    let note = ours.sign(5, [7; 32]);
    assert_eq!(
        ours.public().open(&note).unwrap(),
        Checkpoint {
            origin: "kubler.example/ledger".into(),
            size: 5,
            root: [7; 32]
        }
    );
    assert!(matches!(
        key("kubler.example/ledger", 2).public().open(&note),
        Err(NoteError::OtherKey { .. })
    ));
    assert!(matches!(
        key("other.example", 1).public().open(&note),
        Err(NoteError::OtherKey { .. })
    ));
    assert_eq!(
        ours.public().open(&note.replace("\n5\n", "\n6\n")),
        Err(NoteError::BadSignature)
    );
}

#[test]
fn l5_other_texts_are_no_checkpoints() {
    let ours = key("k", 1);
    let note = ours.sign(5, [7; 32]);
    for text in [
        "",
        "\n\n",
        "a\n\n— k\n",
        "a\n\n— k !!!\n",
        note.trim_end(),
        &note.replace("— ", "-- "),
        &note.replace("\n5\n", "\n05\n"),
    ] {
        assert!(ours.public().open(text).is_err(), "{text:?}");
    }
    let with_a_witness = format!("{note}— witness.example AAAAAQID\n");
    assert!(
        ours.public().open(&with_a_witness).is_ok(),
        "signatures of other kinds are ignored"
    );
}

#[test]
fn names_that_break_notes_are_refused() {
    for name in ["", "a b", "a+b", "a\nb", &"x".repeat(256)] {
        assert!(
            PrivateKey::from_random(name, &Zeroizing::new([1; 32])).is_err(),
            "{name:?}"
        );
    }
}
