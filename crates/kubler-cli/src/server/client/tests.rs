use super::*;

#[test]
fn a_segment_stays_one_segment() {
    assert_eq!(segment("env_0a"), "env_0a");
    assert_eq!(segment("../v1/x?y#z %"), "..%2Fv1%2Fx%3Fy%23z%20%25");
}

#[test]
fn plain_http_is_refused() {
    let tls = TlsConfig::builder().build();
    let failure = Client::new("http://kubler.example", None, tls)
        .err()
        .unwrap();
    assert_eq!(failure.exit, Exit::Usage);
}
