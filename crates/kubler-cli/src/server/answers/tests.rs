use super::*;

fn peer() -> Peer {
    Peer {
        url: "https://s".into(),
        ca: None,
    }
}

#[test]
fn a_problem_keeps_its_code_hint_and_request() {
    let text = r#"{"type":"about:blank#denied","title":"denied","status":403,"code":"denied","detail":"no policy allows it","hint":"ask","request_id":"req_1"}"#;
    let failure = refusal(StatusCode::FORBIDDEN, text, None, &peer());
    assert_eq!(failure.exit, Exit::Denied);
    assert_eq!(
        failure.lines(),
        "error: no policy allows it (`denied`)\nhint: ask\nrequest: req_1"
    );
}

#[test]
fn an_answer_of_something_else_says_what_was_answered() {
    let failure = refusal(StatusCode::BAD_GATEWAY, "<html>", Some(3), &peer());
    assert_eq!(
        (failure.exit, failure.retry),
        (Exit::Unavailable, Retry::After(3))
    );
    assert!(failure.lines().contains("502"), "{}", failure.lines());
}

#[test]
fn what_cannot_help_is_not_tried_again() {
    let mut tries = 0;
    let result: Outcome<()> = retrying(Deadline::after(Duration::from_secs(5)), || {
        tries += 1;
        Err(Failure::new(Exit::Denied, "no"))
    });
    assert!(result.is_err());
    assert_eq!(tries, 1);
}

#[test]
fn what_can_help_is_tried_again() {
    let mut tries = 0;
    let result = retrying(Deadline::after(Duration::from_secs(5)), || {
        tries += 1;
        if tries < 3 {
            Err(Failure::new(Exit::Unavailable, "no").retry(Retry::Soon))
        } else {
            Ok(tries)
        }
    });
    assert_eq!(result.unwrap(), 3);
}
