//! What may not be written: each rule as a refusal at load.

use rstest::rstest;

use super::*;

fn permit(conditions: &str) -> String {
    format!("permit (principal is Job, action, resource) when {{ {conditions} }};")
}

fn bound(conditions: &str) -> String {
    permit(&format!(
        "principal.organization_id == \"{ORGANIZATION}\" && {conditions}"
    ))
}

#[rstest]
#[case("permit (principal, action, resource);")]
#[case("permit (principal is Job, action, resource);")]
#[case("permit (principal == Job::\"x\", action, resource);")]
#[case("permit (principal in Job::\"x\", action, resource);")]
#[case("permit (principal is Job in Job::\"x\", action, resource);")]
#[case("permit (principal, action == Action::\"read_metrics\", resource);")]
#[case(&permit("principal.build_source == \"ui\""))]
#[case(&permit("principal has branch || true"))]
// Of the organization of the target, which is not the caller's.
#[case(
    "permit (principal is Job, action, resource is Environment) when { resource.organization_id == \"01945ecf-0000-4000-8000-000000000001\" };"
)]
#[case(
    "permit (principal is Job, action, resource is Environment) when { resource.organization_id == principal.organization_id };"
)]
// Bound in one branch only.
#[case(&permit("principal.organization_id == \"01945ecf-0000-4000-8000-000000000001\" || principal.build_source == \"ui\""))]
#[case(&permit("if principal has branch then principal.organization_id == \"01945ecf-0000-4000-8000-000000000001\" else true"))]
// Bound to everything but one.
#[case(&permit("principal.organization_id != \"01945ecf-0000-4000-8000-0000000000ff\""))]
#[case(&permit("!(principal.organization_id == \"01945ecf-0000-4000-8000-0000000000ff\")"))]
#[case(
    "permit (principal is Job, action, resource) unless { principal.organization_id == \"01945ecf-0000-4000-8000-0000000000ff\" };"
)]
fn c1_a_permit_for_jobs_without_an_organization_is_refused(#[case] text: &str) {
    let fault = fault_of(text);
    assert_eq!(
        fault.message, "it permits jobs without binding their organization",
        "{text}"
    );
    assert!(fault.hint.contains("organization_id"));
}

#[rstest]
#[case(&bound("true"))]
#[case(&permit("\"01945ecf-0000-4000-8000-000000000001\" == principal.organization_id"))]
#[case(&permit("[\"01945ecf-0000-4000-8000-000000000001\", \"01945ecf-0000-4000-8000-0000000000ff\"].contains(principal.organization_id)"))]
#[case(&permit("(principal.organization_id == \"01945ecf-0000-4000-8000-000000000001\" && principal.build_source == \"ui\") || principal.organization_id == \"01945ecf-0000-4000-8000-0000000000ff\""))]
#[case(&permit("if principal has branch then principal.organization_id == \"01945ecf-0000-4000-8000-000000000001\" else false"))]
#[case(
    "permit (principal, action, resource) when { principal is Job && principal.organization_id == \"01945ecf-0000-4000-8000-000000000001\" };"
)]
#[case("permit (principal is Operator, action, resource);")]
#[case("permit (principal == Operator::\"alice\", action, resource);")]
#[case("forbid (principal, action, resource);")]
fn c1_a_permit_that_binds_the_organization_is_taken(#[case] text: &str) {
    set_of(text);
}

#[test]
fn c1_an_organization_that_no_issuer_lists_is_refused() {
    let fault = fault_of(&permit(
        "principal.organization_id == \"01945ecf-0000-4000-8000-0000000000aa\"",
    ));
    assert!(fault.message.contains("no issuer lists"), "{fault}");
    let fault = fault_of(&permit("principal.organization_id == \"acme\""));
    assert!(
        fault.message.contains("slug") && fault.hint.contains(ORGANIZATION),
        "{fault}"
    );
}

#[rstest]
#[case("principal.pipeline_id == \"api\"", "it is a UUID in lower case")]
#[case(
    "[\"01945ECF-0000-4000-8000-000000000002\"].contains(principal.build_id)",
    "write `01945ecf-0000-4000-8000-000000000002`"
)]
#[case(
    "resource has job_id && resource.job_id != \"01945ecf000040008000000000000002\"",
    "write `01945ecf-0000-4000-8000-000000000002`"
)]
fn an_id_that_no_token_can_have_is_refused(#[case] condition: &str, #[case] hint: &str) {
    let fault = fault_of(&bound(condition));
    assert!(fault.message.contains("_id` is ever `"), "{fault}");
    assert!(fault.hint.contains(hint), "{fault}: {}", fault.hint);
}

#[test]
fn c2_an_organization_bound_by_its_slug_alone_is_refused() {
    let fault = fault_of(&permit("principal.organization_slug == \"acme\""));
    assert_eq!(fault.message, "it binds the organization by its slug alone");
    set_of(&bound("principal.organization_slug == \"acme\""));
}

#[rstest]
#[case("principal.pipeline_slug == \"web\"")]
#[case("[\"web\"].contains(principal.pipeline_slug)")]
#[case("principal.pipeline_slug != \"web\"")]
#[case("{\"of\": principal}.of.pipeline_slug == \"web\"")]
#[case(
    "(principal.pipeline_slug == \"web\" || principal.pipeline_id == \"01945ecf-0000-4000-8000-000000000002\")"
)]
fn c2_a_pipeline_bound_by_its_slug_alone_is_refused(#[case] condition: &str) {
    let fault = fault_of(&bound(condition));
    assert_eq!(
        fault.message, "it uses `pipeline_slug` without binding `pipeline_id`",
        "{condition}"
    );
}

#[test]
fn c2_a_slug_beside_its_id_is_taken() {
    set_of(&bound(
        "principal.pipeline_id == \"01945ecf-0000-4000-8000-000000000002\" && principal.pipeline_slug == \"web\"",
    ));
}

#[test]
fn c2_a_forbid_by_a_slug_is_refused_because_a_rename_lifts_it() {
    let fault = fault_of(
        "forbid (principal is Job, action, resource) when { principal.organization_slug == \"acme\" };",
    );
    assert_eq!(fault.message, "it forbids by `organization_slug`");
    set_of(
        "forbid (principal is Job, action, resource) when { principal.pipeline_id == \"01945ecf-0000-4000-8000-000000000002\" };",
    );
}

#[rstest]
#[case("principal.sub == \"organization:acme:pipeline:web\"")]
#[case("principal.sub like \"organization:acme:*\"")]
#[case("principal has sub")]
fn c2_the_subject_is_no_attribute(#[case] condition: &str) {
    let faults = parse(&bound(condition)).expect_err(condition);
    assert!(!faults.is_empty());
    // `has sub` can never hold, which is a fault too.
    assert!(!SCHEMA.contains("\"sub\""));
}

#[rstest]
#[case("principal.organization_id like \"01945ecf-*\"")]
#[case("principal.organization_slug like \"acme*\"")]
#[case("principal.pipeline_id like \"01945ecf-*\"")]
#[case("principal.build_id like \"0*\"")]
#[case("principal.job_id like \"0*\"")]
#[case("principal.issuer like \"https://*\"")]
#[case("principal.build_source like \"w*\"")]
#[case("principal.commit like \"0*\"")]
#[case(
    "(if principal.branch_is_of_a_fork then principal.organization_slug else principal.build_source) like \"a*\""
)]
#[case("{\"of\": principal}.of.build_source like \"a*\"")]
fn c3_a_pattern_on_an_id_a_slug_or_anything_but_one_free_text_is_refused(#[case] condition: &str) {
    let faults = parse(&bound(condition)).expect_err(condition);
    assert!(
        faults
            .iter()
            .any(|fault| fault.message.starts_with("`like` on")),
        "{faults:#?}"
    );
}

#[rstest]
#[case("*")]
#[case("**")]
fn c3_a_pattern_of_nothing_but_wildcards_is_refused(#[case] pattern: &str) {
    for text in [
        bound(&format!(
            "principal has branch && principal.branch like \"{pattern}\""
        )),
        format!(
            "forbid (principal is Job, action, resource) when {{ principal has tag && principal.tag like \"{pattern}\" }};"
        ),
    ] {
        let fault = fault_of(&text);
        assert!(fault.message.ends_with("matches everything"), "{fault}");
    }
}

#[test]
fn c3_a_pattern_on_a_branch_is_taken_and_matches_the_whole_of_it() {
    let set = set_of(&bound(
        "principal has branch && principal.branch like \"release/*\"",
    ));
    let on = |branch: &str| {
        let caller =
            job(|identity| identity.source.branch = Some(crate::text::UntrustedText::new(branch)));
        set.decide(&caller, Action::CreateEnvironment, profile("ci-small"))
            .is_ok()
    };
    assert!(on("release/1.0"));
    assert!(!on("someone:release/1.0"));
    assert!(!on("prerelease/1.0"));
    assert!(!on("Release/1.0"));
}

#[test]
fn c4_a_pattern_that_anybody_can_extend_at_its_front_is_refused_in_a_permit() {
    let fault = fault_of(&bound(
        "principal has branch && principal.branch like \"*/main\"",
    ));
    assert!(fault.message.contains("begins with `*`"), "{fault}");
    set_of(
        "forbid (principal is Job, action, resource) when { principal has branch && principal.branch like \"*:*\" };",
    );
    set_of(&bound(
        "principal has branch && principal.branch like \"\\*main\"",
    ));
}

#[rstest]
#[case("principal has branch && principal.branch == \"release/*\"")]
#[case("principal has branch && [\"main\", \"release/*\"].contains(principal.branch)")]
fn c4_a_star_where_no_pattern_is_read_is_refused(#[case] condition: &str) {
    let fault = fault_of(&bound(condition));
    assert!(fault.message.contains("compared as it stands"), "{fault}");
}

#[test]
fn c7_agent_tags_are_no_attributes() {
    assert!(parse(&bound("principal.agent_tag == \"x\"")).is_err());
    assert!(!SCHEMA.contains("agent_tag"));
    assert!(
        parse(&bound(
            "principal has queue_id && principal.queue_id == \"01945ecf-0000-4000-8000-000000000009\""
        ))
        .is_ok()
    );
}

#[rstest]
#[case("permit (principal is Operator, action == Action::\"creat_environment\", resource);")]
#[case("permit (principal is Operators, action, resource);")]
#[case(&bound("resource.nam == \"x\""))]
#[case(&bound("principal.build_number == \"5\""))]
#[case(&bound("principal.branch == \"main\""))]
#[case(&bound("context.time == 1"))]
#[case(
    "permit (principal is Operator, action, resource) when { principal.organization_id == \"x\" };"
)]
#[case("permit (principal == ?principal, action, resource);")]
#[case(
    "permit (principal is Operator, action == Action::\"create_environment\", resource is Server);"
)]
#[case("permit (principal is Operator, action, resource) when { false };")]
#[case("@idd(\"x\") permit (principal is Operator, action, resource);")]
#[case("@id(\"\") permit (principal is Operator, action, resource);")]
#[case("@id(\"a b\") permit (principal is Operator, action, resource);")]
#[case("permit (principal is Operator, action, resource)")]
#[case("permit (principal is Operator, action, resource);;")]
#[case("permit (principal is Operator, action, resource == Profile::\"ci-smal\");")]
#[case(
    "permit (principal is Operator, action, resource is Profile) when { resource.name == \"ci-smal\" };"
)]
#[case(
    "permit (principal is Operator, action, resource is Environment) when { resource.profile == \"ci-smal\" };"
)]
fn t9_what_cannot_mean_anything_is_refused(#[case] text: &str) {
    let faults = parse(text).expect_err(text);
    assert!(
        faults
            .iter()
            .all(|fault| fault.file == "a.cedar" && fault.line == 1),
        "{faults:#?}"
    );
    assert!(
        faults
            .iter()
            .all(|fault| !fault.message.is_empty() && !fault.hint.is_empty()),
        "{faults:#?}"
    );
}

#[test]
fn t9_every_fault_of_every_policy_is_told_with_its_line() {
    let faults = parse("// a\npermit (principal is Operator, action, resource) whn {};\n\nforbid (principal,\n  action == Action::\"x\", resource);\npermit (principal is Job, action, resource);\n").unwrap_err();
    let lines: Vec<_> = faults.iter().map(|fault| fault.line).collect();
    assert_eq!(lines, [2, 5, 6], "{faults:#?}");
}

#[test]
fn t9_two_policies_of_one_id_are_refused() {
    let files = BTreeMap::from([
        (
            "a.cedar".to_owned(),
            "@id(\"x\") permit (principal is Operator, action, resource);".to_owned(),
        ),
        (
            "b.cedar".to_owned(),
            "\n@id(\"x\") forbid (principal, action, resource);".to_owned(),
        ),
    ]);
    let faults = PolicySet::parse(&files, &configuration()).unwrap_err();
    assert_eq!((faults[0].file.as_str(), faults[0].line), ("b.cedar", 2));
    assert!(faults[0].message.contains("a.cedar:1"));
}

#[test]
fn sizes_are_bounded() {
    let many = "permit (principal is Operator, action, resource);\n".repeat(POLICIES_MAX + 1);
    assert!(parse(&many).unwrap_err()[0].message.contains("more than"));
    let long = " ".repeat(POLICY_FILE_BYTES_MAX + 1);
    assert!(parse(&long).unwrap_err()[0].message.contains("at most"));
    let files = (0..=POLICY_FILES_MAX).map(|nth| (format!("{nth}.cedar"), String::new()));
    assert!(PolicySet::parse(&files.collect(), &configuration()).is_err());
}

#[rstest]
#[case(vec!["principal.build_number > 1"; 2000].join(" && "), "words and operators")]
#[case(format!("{}true{}", "(".repeat(2000), ")".repeat(2000)), "words and operators")]
#[case(format!("{}true{}", "(".repeat(200), ")".repeat(200)), "brackets nest")]
#[case("if true then true else ".repeat(100) + "true", "`if`s")]
#[case(format!("principal{}", ".a".repeat(100_000)), "words and operators")]
#[case(format!("principal{} == 1", ".a".repeat(100)), "chain")]
#[case(vec!["1"; 100].join(" + ") + " == 1", "chain")]
fn what_nests_too_deeply_never_reaches_the_stack(#[case] condition: String, #[case] part: &str) {
    let fault = fault_of(&bound(&condition));
    assert!(fault.message.contains(part), "{fault}");
}

/// The worst that is still read, on the smallest stack it may be read on.
#[rstest]
#[case(vec!["true"; 450].join(" && "))]
#[case(vec!["principal.build_number > 1"; 180].join(" && "))]
#[case(format!("principal{} == 1", ".a".repeat(30)))]
#[case(format!("{}{}{}", "(".repeat(22), vec!["true"; 450].join(" || "), ")".repeat(22)))]
#[case("if true then true else ".repeat(24) + "true")]
#[case(format!("{}{}{}", "(if true then true else ".repeat(22), "true", ")".repeat(22)))]
#[case(format!("{}1{} == 1", "[".repeat(22), "]".repeat(22)))]
#[case(vec!["1"; 30].join(" + ") + " == 1")]
fn what_is_read_fits_a_thread(#[case] condition: String) {
    let text = bound(&condition);
    std::thread::Builder::new()
        .stack_size(2 * 1024 * 1024)
        .spawn(move || {
            if let Ok(set) = parse(&text) {
                let _ = set.decide(&job(|_| ()), Action::CreateEnvironment, profile("ci-small"));
            }
        })
        .unwrap()
        .join()
        .unwrap();
}

#[test]
fn a_long_set_of_ids_is_read() {
    let ids: Vec<_> = (0..2000)
        .map(|nth| format!("\"01945ecf-0000-4000-8000-{nth:012}\""))
        .collect();
    set_of(&bound(&format!(
        "[{}].contains(principal.pipeline_id)",
        ids.join(", ")
    )));
}

#[test]
fn the_digest_is_of_names_and_texts() {
    let digest = |files: &[(&str, &str)]| {
        let files = files
            .iter()
            .map(|(name, text)| ((*name).to_owned(), (*text).to_owned()))
            .collect();
        PolicySet::parse(&files, &configuration())
            .unwrap()
            .digest()
            .to_owned()
    };
    let one = digest(&[("a.cedar", ""), ("b.cedar", "// x")]);
    assert_eq!(one, digest(&[("b.cedar", "// x"), ("a.cedar", "")]));
    assert_ne!(one, digest(&[("a.cedar", "// x"), ("b.cedar", "")]));
    assert_ne!(one, digest(&[("a.cedar", ""), ("b.cedar", "// y")]));
    assert_eq!(one.len(), 64);
}
