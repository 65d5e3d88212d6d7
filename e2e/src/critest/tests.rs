use super::*;

/// A report of one suite with these specs: container, text, state, message, and the number that was to run.
fn report(specs: &[(&str, &str, &str, &str)], meant: usize) -> Report {
    let nodes: Vec<_> = specs
        .iter()
        .map(|(container, text, state, message)| {
            serde_json::json!({
                "ContainerHierarchyTexts": [format!("[k8s.io] {container}"), "inner"],
                "LeafNodeType": "It", "LeafNodeText": text, "State": state, "RunTime": 2_000_000_000_u64,
                "Failure": {"Message": message},
            })
        })
        .collect();
    let suite = serde_json::json!([{
        "PreRunStats": {"TotalSpecs": 9, "SpecsThatWillRun": meant}, "RunTime": 5_000_000_000_u64,
        "SpecialSuiteFailureReasons": null, "SpecReports": nodes,
    }]);
    read_report(&suite.to_string()).unwrap()
}

const LIST: &str = r#"
[[expect]]
outcome = "pass"
specs = ["Image / inner / pulls", "Image / inner / lists"]

[[expect]]
outcome = "fail"
reason = "streaming is not served yet"
specs = ["Streaming / inner / attaches"]

[[expect]]
outcome = "skip"
reason = "no NRI"
specs = ["NRI / inner / synchronizes"]
"#;

fn as_expected() -> [(&'static str, &'static str, &'static str, &'static str); 4] {
    [
        ("Image", "pulls", "passed", ""),
        ("Image", "lists", "passed", ""),
        ("Streaming", "attaches", "failed", "Unimplemented\nmore"),
        ("NRI", "synchronizes", "skipped", "no socket"),
    ]
}

fn surprises(specs: &[(&str, &str, &str, &str)], meant: usize) -> Vec<String> {
    let expected = read_expected(LIST, None).unwrap();
    judge(&report(specs, meant), Some(&expected)).surprises
}

#[test]
fn a_run_that_is_as_expected_has_no_surprise_and_names_what_is_known() {
    let verdict = judge(
        &report(&as_expected(), 4),
        Some(&read_expected(LIST, None).unwrap()),
    );
    assert_eq!(verdict.surprises, Vec::<String>::new());
    assert_eq!((verdict.passed, verdict.failed, verdict.skipped), (2, 1, 1));
    assert_eq!(
        verdict.known,
        [
            "Fail: Streaming / inner / attaches: streaming is not served yet",
            "Skip: NRI / inner / synchronizes: no NRI"
        ]
    );
}

#[test]
fn each_difference_is_a_surprise() {
    let differences = [
        (
            0,
            "failed",
            "broken\nat line 5",
            "Fail: Image / inner / pulls: broken at line 5 (expected Pass)",
        ),
        (0, "panicked", "", "Fail: Image / inner / pulls (expected Pass)"),
        (
            1,
            "skipped",
            "no list",
            "Skip: Image / inner / lists: no list (expected Pass)",
        ),
        (
            2,
            "passed",
            "",
            "Pass: Streaming / inner / attaches (expected Fail: streaming is not served yet)",
        ),
        (
            3,
            "passed",
            "",
            "Pass: NRI / inner / synchronizes (expected Skip: no NRI)",
        ),
    ];
    for (at, state, message, surprise) in differences {
        let mut specs = as_expected();
        (specs[at].2, specs[at].3) = (state, message);
        assert_eq!(surprises(&specs, 4), [surprise]);
    }
}

#[test]
fn a_host_may_lack_what_a_spec_needs_and_say_so() {
    let list = LIST.replace(
        "reason = \"stream",
        "or_skips = \"no AppArmor\"\nreason = \"stream",
    );
    let expected = read_expected(&list, None).unwrap();
    let surprises = |message| {
        let mut specs = as_expected();
        (specs[2].2, specs[2].3) = ("skipped", message);
        judge(&report(&specs, 4), Some(&expected)).surprises.len()
    };
    assert_eq!((surprises("no AppArmor here"), surprises("too lazy")), (0, 1));
}

#[test]
fn what_was_not_selected_is_neither_counted_nor_missed() {
    let mut specs = as_expected();
    (specs[2].2, specs[2].3) = ("skipped", "");
    assert_eq!(surprises(&specs, 3), Vec::<String>::new());
}

#[test]
fn a_run_cut_short_is_a_surprise() {
    let mut specs = as_expected();
    (specs[2].2, specs[2].3) = ("skipped", "");
    assert_eq!(surprises(&specs, 4), ["3 specs ran of 4 that were selected"]);
}

#[test]
fn specs_that_one_side_does_not_know_are_surprises() {
    let mut specs = as_expected().to_vec();
    specs.push(("Image", "new", "passed", ""));
    assert_eq!(
        surprises(&specs, 5),
        ["Pass: Image / inner / new (nothing is expected of it)"]
    );
    assert_eq!(
        surprises(&as_expected()[1..], 3),
        ["expected, and no spec of this critest: Image / inner / pulls"]
    );
}

#[test]
fn without_a_list_only_failures_are_surprises() {
    let verdict = judge(&report(&as_expected(), 4), None);
    assert_eq!(
        verdict.surprises,
        ["Fail: Streaming / inner / attaches: Unimplemented more"]
    );
}

#[test]
fn trouble_outside_of_specs_is_a_surprise() {
    let text = r#"[{"PreRunStats": {"SpecsThatWillRun": 0}, "RunTime": 1, "SpecialSuiteFailureReasons": ["Interrupted"],
        "SpecReports": [{"ContainerHierarchyTexts": null, "LeafNodeType": "SynchronizedBeforeSuite", "LeafNodeText": "",
        "State": "failed", "Failure": {"Message": "no connection"}}]}]"#;
    let verdict = judge(&read_report(text).unwrap(), None);
    assert_eq!(
        verdict.surprises,
        [
            "the suite: Interrupted",
            "SynchronizedBeforeSuite failed: no connection",
            "0 specs ran of 0 that were selected"
        ]
    );
}

#[test]
fn times_are_compared_where_both_passed() {
    let mut other = as_expected();
    other[1].2 = "failed";
    assert_eq!(
        seconds_beside(&report(&as_expected(), 4), &report(&other, 4)),
        (2.0, 2.0, 1)
    );
}

#[test]
fn a_list_that_contradicts_itself_is_refused() {
    for list in [
        "expect = [{outcome = \"pass\", specs = [\"a\", \"a\"]}]",
        "expect = [{outcome = \"fail\", specs = [\"a\"]}]",
        "expect = [{outcome = \"pass\", reason = \"why\", specs = [\"a\"]}]",
        "expect = [{outcome = \"maybe\", specs = [\"a\"]}]",
    ] {
        assert!(read_expected(list, None).is_err(), "{list}");
    }
}

#[test]
fn the_list_in_this_repository_is_one() {
    let list = read_expected(include_str!("../../critest-expected.toml"), None).unwrap();
    assert!(list.len() > 100, "{} specs", list.len());
}

#[test]
fn a_variant_replaces_what_is_expected_of_all() {
    let list = format!(
        "{LIST}\n[[expect]]\nvariant = \"small\"\noutcome = \"skip\"\nreason = \"too large\"\nspecs = [\"Image / inner / pulls\"]"
    );
    let outcome = |variant| read_expected(&list, variant).unwrap()["Image / inner / pulls"].outcome;
    assert_eq!(outcome(None), Outcome::Pass);
    assert_eq!(outcome(Some("small")), Outcome::Skip);
    let unknown = read_expected(&list, Some("tiny")).unwrap_err().to_string();
    assert!(unknown.contains("tiny"), "{unknown}");
    let shipped = include_str!("../../critest-expected.toml");
    assert_eq!(
        read_expected(shipped, Some("machines")).unwrap().len(),
        read_expected(shipped, None).unwrap().len()
    );
}

#[test]
fn of_a_long_message_its_beginning_is_shown_in_a_line() {
    let long = format!("Unexpected error:\n    {}", "é".repeat(1000));
    let line = report(&[("Image", "pulls", "failed", &long)], 1).specs[0].line();
    assert!(
        line.starts_with("Fail: Image / inner / pulls: Unexpected error: é"),
        "{line}"
    );
    assert!(line.len() < 700, "{}", line.len());
}
