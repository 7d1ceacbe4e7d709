//! Records of runs: they are read back and compared, and shown on a page whose markup no text in them can break.

use std::fs;
use std::path::Path;
use std::process::Command;

use aquatint::Error;
use aquatint::device::Precision;
use aquatint::error::LibraryNames;
use aquatint::quant::{Alpha, AlphaPolicy, GroupSize, QuantizeOptions};
use aquatint::record::Phase;
use aquatint::record::{BlockReport, LayerReport, Report};
use aquatint::report::{Document, Evaluation, Run, Sizes, html};
use serde_json::Value;
use tempfile::TempDir;

const BLOCKS: usize = 3;
const HOSTILE: &str = "</script><script>alert('1 & \"2\"')</script><!-- ]]> & <b>";

/// A run with a value in every optional field. `worse` scales its errors.
fn run(label: &str, worse: f64) -> Run {
    let overrides = vec![(regex::Regex::new("down_proj|[<&>]").unwrap(), Alpha::Fixed(0.25))];
    let options = QuantizeOptions {
        bits: 3,
        group_size: GroupSize::Columns(32),
        alpha: AlphaPolicy { default: Alpha::Auto, overrides, shrinkage: 0.6 },
        ..QuantizeOptions::default()
    };
    let layer = |block: usize, kind: &str, guarded: bool| LayerReport {
        name: format!("model.layers.{block}.{kind}"),
        alpha_requested: Alpha::Auto,
        alpha_optimal: Some(0.75),
        alpha: if guarded { 0.0 } else { 0.45 },
        guarded,
        correction_damping: 0.01,
        rounding_damping: Some(if guarded { 0.1 } else { 0.01 }),
        awq_ratio: None,
        error_fitted: 0.01 * worse,
        error_held_out: Some(0.1 / 3.0 * worse),
        error_held_out_uncorrected: (block > 0).then_some(0.05 * worse),
    };
    let layers = (0..BLOCKS).flat_map(|b| [layer(b, "self_attn.q_proj", false), layer(b, "mlp.down_proj", b == 1)]);
    let delta = |block: usize| 0.01 * worse * (block + 1) as f64 / 7.0;
    let report = Report {
        aquatint: "0.1.0".to_string(),
        device: "cpu".to_string(),
        precision: Precision::Portable,
        options,
        group_size: Some(32),
        tokens: 512,
        held_out_tokens: 128,
        layers: layers.collect(),
        blocks: (0..BLOCKS).map(|b| BlockReport { block: b, delta: delta(b), error: delta(b).sqrt() }).collect(),
        seconds: [(Phase::Load, 0.1), (Phase::Forward, 1.0 / 3.0)].into(),
        total_seconds: 0.5,
        plan: None,
        peak_device_bytes: None,
    };
    let evaluation = Evaluation {
        text: "texts/other.txt".to_string(),
        windows: 4,
        seq_len: 128,
        tokens: 508,
        perplexity: 51.234_567 * worse,
        original_perplexity: Some(48.86),
        kl: Some(0.05),
        top1_agreement: Some(0.9),
    };
    let sizes = Sizes { original_bytes: 4_700_000, quantized_bytes: 1_400_000, bits_per_weight: Some(3.59) };
    let run = Run::new(label, "some/tiny model", report);
    Run { sizes: Some(sizes), evaluations: vec![evaluation], ..run }
}

fn json(document: &Document) -> Value {
    serde_json::to_value(document).unwrap()
}

#[test]
fn records_from_before_there_were_tiers_were_made_by_the_portable_kernels() {
    let mut old = serde_json::to_value(run("a", 1.0).report).unwrap();
    assert_eq!(old["precision"], "portable");
    old.as_object_mut().unwrap().remove("precision");
    assert_eq!(serde_json::from_value::<Report>(old).unwrap().precision, Precision::Portable);
}

/// The document that a page carries, found as a browser finds it: up to the first end of a script.
fn embedded(page: &str) -> Value {
    let (_, rest) = page.split_once("id=\"aquatint-document\">").unwrap();
    serde_json::from_str(rest.split_once("</script>").unwrap().0).unwrap()
}

/// Checks that tags nest, attributes are quoted, and coordinates are numbers.
fn check_markup(page: &str) {
    let (head, body) = page.split_once("<body>").unwrap();
    assert_eq!(head.matches("<script").count() + body.matches("<script").count(), 1, "more than the data");
    let markup = body.split_once("<script").unwrap().0;
    let mut open: Vec<&str> = Vec::new();
    for (tag, attributes) in tags(markup) {
        if let Some(closing) = tag.strip_prefix('/') {
            assert_eq!(open.pop(), Some(closing), "closed out of order in {open:?}");
        } else if !attributes.ends_with('/') {
            open.push(tag);
        }
        for (name, value) in attributes.split("\" ").filter_map(|pair| pair.split_once("=\"")) {
            if ["points", "cx", "cy", "x", "y", "x1", "x2", "y1", "y2", "width", "height"].contains(&name.trim()) {
                let numbers = value.trim_end_matches(['"', '/']).split([' ', ',']).filter(|part| !part.is_empty());
                for number in numbers {
                    assert!(number.parse::<f64>().is_ok_and(f64::is_finite), "{tag} {name}: {value}");
                }
            }
        }
    }
    assert!(open.is_empty(), "never closed: {open:?}");
}

/// The names and attributes of all tags. Panics if text contains a `<` or `>`.
fn tags(markup: &str) -> Vec<(&str, &str)> {
    let mut pieces = markup.split('<');
    assert!(!pieces.next().unwrap().contains('>'));
    pieces
        .map(|piece| {
            let (tag, text) = piece.split_once('>').unwrap_or_else(|| panic!("no tag: {piece}"));
            assert!(!text.contains('>'), "{text}");
            tag.split_once([' ', '\n']).unwrap_or((tag.trim_end_matches('/'), ""))
        })
        .collect()
}

#[test]
fn a_document_is_read_back_digit_by_digit() {
    let document = Document::new("Two <runs>", "sweep", vec![run("a", 1.0), run(HOSTILE, std::f64::consts::PI)]);
    let text = serde_json::to_string_pretty(&document).unwrap();
    let read = Document::read("sweep.json", text.as_bytes()).unwrap();
    assert_eq!(serde_json::to_string_pretty(&read).unwrap(), text);
    let page = html::html(&document, &LibraryNames).unwrap();
    let read = Document::read("sweep.html", page.as_bytes()).unwrap();
    assert_eq!(json(&read), json(&document), "from the page");
    assert_eq!(embedded(&page), json(&document));
}

#[test]
fn the_record_of_one_run_is_a_document_with_or_without_what_is_known_beside() {
    let whole = run("", 1.0);
    let bare = serde_json::to_string(&whole.report).unwrap();
    let document = Document::read("old.json", bare.as_bytes()).unwrap();
    assert_eq!(document.title, "old.json");
    assert_eq!(serde_json::to_string(&document.runs[0].report).unwrap(), bare);
    assert!(document.runs[0].sizes.is_none() && document.runs[0].evaluations.is_empty());
    let page = html::html(&document, &LibraryNames).unwrap();
    check_markup(&page);
    assert!(page.contains("<h2>Size</h2>\n<p>The record has none.</p>"));
    let document = Document::read("new.json", &serde_json::to_vec(&whole).unwrap()).unwrap();
    assert_eq!(document.title, "some/tiny model");
    assert_eq!(document.runs[0].sizes, whole.sizes);
    assert_eq!(document.runs[0].evaluations, whole.evaluations);
    // The fields of a report stand at the top level, as in older records.
    let (old, new): (Value, Value) = (serde_json::from_str(&bare).unwrap(), serde_json::to_value(&whole).unwrap());
    for (key, value) in old.as_object().unwrap() {
        assert_eq!(&new[key], value, "{key}");
    }
}

#[test]
fn nothing_in_a_document_breaks_out_of_the_page() {
    let mut hostile = run(HOSTILE, 1.0);
    hostile.model = HOSTILE.to_string();
    hostile.report.device = HOSTILE.to_string();
    hostile.report.aquatint = HOSTILE.to_string();
    hostile.report.layers.iter_mut().for_each(|layer| layer.name += HOSTILE);
    hostile.evaluations[0].text = HOSTILE.to_string();
    let mut document = Document::new(HOSTILE, HOSTILE, vec![hostile.clone()]);
    document.aquatint = HOSTILE.to_string();
    for runs in [1, 2, 5] {
        document.runs = vec![hostile.clone(); runs];
        let page = html::html(&document, &LibraryNames).unwrap();
        check_markup(&page);
        assert!(!page.contains("<script>alert") && !page.contains("<!-- ]]"));
        assert_eq!(embedded(&page), json(&document));
    }
}

#[test]
fn a_page_says_what_is_in_it() {
    let page = html::html(&Document::new("One", "quantize", vec![run("", 1.0)]), &LibraryNames).unwrap();
    check_markup(&page);
    for part in [
        "default-src 'none'",
        "<h1>One</h1>",
        "After the last of 3 blocks the hidden states are 6.5\u{a0}% away",
        "<dd>51.23</dd>",
        "<dd>48.86</dd>",
        "<dd>1.4\u{a0}MB</dd>",
        "<dd>3.59</dd>",
        "<dd>1 of 6</dd>",
        "<dd>auto, down_proj|[&lt;&amp;&gt;] = 0.25</dd>",
        "1 of 6 layers stored uncorrected, since the correction made it worse on held-out tokens: \
         <code>model.layers.1.mlp.down_proj</code>",
        "rounded with a greater ridge than asked for",
        "on 128 held-out tokens",
        "<td>0.03333</td>",
        "<th scope=\"row\">seed</th><td>0</td>",
    ] {
        assert!(page.contains(part), "no {part}");
    }
    // Error growth at two widths, and error and α of two kinds of layer.
    assert_eq!(page.matches("<svg class=\"plot\"").count(), 2 + 4);
}

#[test]
fn what_was_not_measured_is_said() {
    let mut plain = run("", 1.0);
    plain.evaluations.clear();
    plain.sizes = None;
    plain.report.total_seconds = 0.0;
    plain.report.options.alpha = AlphaPolicy { default: Alpha::Off, overrides: Vec::new(), shrinkage: 0.6 };
    for layer in &mut plain.report.layers {
        *layer = LayerReport {
            alpha_requested: Alpha::Off,
            alpha_optimal: None,
            alpha: 0.0,
            guarded: false,
            rounding_damping: None,
            error_held_out: None,
            error_held_out_uncorrected: None,
            ..layer.clone()
        };
    }
    let page = html::html(&Document::new("RTN", "quantize", vec![plain.clone()]), &LibraryNames).unwrap();
    check_markup(&page);
    for part in ["none were held out", "No correction was asked for", "None: no layer was guarded", "aquatint eval"] {
        assert!(page.contains(part), "no {part}");
    }
    for section in ["Perplexity", "Size", "Time"] {
        assert!(page.contains(&format!("<h2>{section}</h2>\n<p>The record has none")), "{section}");
    }
    plain.report.layers.clear();
    plain.report.blocks.clear();
    let page = html::html(&Document::new("Nothing", "quantize", vec![plain]), &LibraryNames).unwrap();
    check_markup(&page);
    assert!(page.contains("No block was measured") && page.contains("No layer was measured"));
    assert!(!page.contains("<svg class=\"plot\""), "an empty plot");
    check_markup(&html::html(&Document::new("None", "sweep", Vec::new()), &LibraryNames).unwrap());
}

#[test]
fn many_runs_keep_their_order_and_twelve_have_curves() {
    let runs: Vec<Run> = (0..40).map(|index| run(&format!("cell {index:02}"), 40.0 - f64::from(index))).collect();
    let page = html::html(&Document::new("Sweep", "sweep", runs), &LibraryNames).unwrap();
    check_markup(&page);
    let at = |label: &str| page.find(&format!("<th scope=\"row\">{label}</th>")).unwrap();
    assert!(at("cell 00") < at("cell 20") && at("cell 20") < at("cell 39"), "sorted as given");
    assert!(page.contains("Of 40 runs, the 12 with the lowest error after the last block have curves here"));
    assert!(page.contains("<summary>cell 28</summary>") && !page.contains("<summary>cell 27</summary>"));
    assert!(page.contains("<em>cell 39</em>"), "the best one is named");
    assert!(page.contains("class=\"stroke series-11\""));
}

#[test]
fn values_that_no_run_has_do_no_harm() {
    let mut odd = run("odd", 1.0);
    odd.report.blocks[1].block = usize::MAX;
    odd.report.blocks[2].error = 1e300;
    odd.report.layers[0].name = format!("model.layers.{}.q_proj", usize::MAX);
    odd.report.layers[1].name = "no block".to_string();
    odd.report.layers[2].error_held_out = Some(-1.0);
    odd.report.layers[3].error_held_out = Some(1e-300);
    odd.report.seconds.insert(Phase::Write, -5.0);
    odd.evaluations[0].perplexity = f64::MAX;
    check_markup(&html::html(&Document::new("odd", "report", vec![odd, run("", 1.0)]), &LibraryNames).unwrap());
}

#[test]
fn files_that_are_no_record_are_refused_in_a_sentence() {
    for (bytes, part) in [
        (&b"not json"[..], "no JSON"),
        (b"{\"runs\": []}", "missing field"),
        (b"{\"title\": \"\", \"command\": \"\", \"aquatint\": \"\", \"runs\": []}", "no runs"),
        (b"[1, 2]", "other JSON"),
        (b"\xff\xfe", "no text"),
        (b"<!doctype html><p>", "a page without"),
        (b"", "no JSON"),
    ] {
        let error = Document::read("some.json", bytes).unwrap_err();
        assert!(matches!(error, Error::Input { .. }), "{error}");
        let said = error.to_string();
        assert!(said.starts_with("some.json: found ") && said.contains(part), "{said}");
    }
    let mut value = serde_json::to_value(run("", 1.0)).unwrap();
    value["options"]["alpha"]["overrides"][0][0] = "(".into();
    let error = Document::read("some.json", &serde_json::to_vec(&value).unwrap()).unwrap_err();
    assert!(error.to_string().contains("regex parse error"), "{error}");
}

#[test]
fn a_run_is_recorded_and_shown_with_what_its_result_is_worth() {
    let scratch = TempDir::new().unwrap();
    let path = |name: &str| scratch.path().join(name).to_str().unwrap().to_string();
    let (out, record, page) = (path("model"), path("run.json"), path("run.html"));
    let text = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/tiny-llama/evaluation.txt");
    let options = ["--bits", "3", "--samples", "4", "--seq-len", "64", "--device", "cpu"];
    let files = ["--json", &record, "--report", &page, "--evaluate", text.to_str().unwrap(), "--evaluate-windows", "4"];
    let (code, said) = aquatint(&[&["quantize", "--out", &out][..], &options, &files].concat());
    assert_eq!(code, Some(0), "{said}");
    let document = Document::read("run.html", &fs::read(&page).unwrap()).unwrap();
    assert_eq!(document.title, "bundled tiny-llama at 3 bits");
    let run = &document.runs[0];
    assert_eq!(
        serde_json::to_value(run).unwrap(),
        serde_json::from_slice::<Value>(&fs::read(&record).unwrap()).unwrap()
    );
    let sizes = run.sizes.unwrap();
    let bytes: u64 = fs::read_dir(&out).unwrap().map(|entry| entry.unwrap().metadata().unwrap().len()).sum();
    assert_eq!(sizes.quantized_bytes, bytes);
    // A weight takes 3 bits, a group of 32 a scale of 16 bits and a zero point of 3, and each input of a layer 32 bits for its group.
    let (inputs, weights) = (6 * 160 + 416, 2 * 160 * (160 + 32) + 3 * 160 * 416);
    let expected = 3.0 + 19.0 / 32.0 + f64::from(32 * inputs) / f64::from(weights);
    assert!((sizes.bits_per_weight.unwrap() - expected).abs() < 1e-12, "{sizes:?}, expected {expected}");
    let [evaluation] = &run.evaluations[..] else { panic!("{:?}", run.evaluations) };
    assert_eq!((evaluation.windows, evaluation.seq_len, evaluation.tokens), (4, 64, 252));
    let ratio = evaluation.perplexity / evaluation.original_perplexity.unwrap();
    assert!((1.0..1.5).contains(&ratio), "{evaluation:?}");
    let page = fs::read_to_string(&page).unwrap();
    assert!(page.contains("reads the files that <code>--json</code> writes"));
    check_markup(&page);
}

fn aquatint(arguments: &[&str]) -> (Option<i32>, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_aquatint")).args(arguments).output().unwrap();
    (output.status.code(), String::from_utf8(output.stderr).unwrap())
}

#[test]
fn the_command_compares_and_rebuilds() {
    let scratch = TempDir::new().unwrap();
    let path = |name: &str| scratch.path().join(name).to_str().unwrap().to_string();
    let (off, auto, both, again) = (path("off.json"), path("auto.json"), path("both.html"), path("again.html"));
    fs::write(&off, serde_json::to_vec(&run("", 2.0).report).unwrap()).unwrap();
    fs::write(&auto, serde_json::to_vec(&run("tuned", 1.0)).unwrap()).unwrap();
    let arguments = ["report", &off, &auto, "--out", &both, "--title", "Off and auto"];
    assert_eq!(aquatint(&arguments), (Some(0), String::new()));
    let page = fs::read_to_string(&both).unwrap();
    check_markup(&page);
    let document = Document::read("both.html", page.as_bytes()).unwrap();
    assert_eq!(document.title, "Off and auto");
    let labels: Vec<&str> = document.runs.iter().map(|run| run.label.as_str()).collect();
    assert_eq!(labels, ["off", "auto: tuned"]);
    assert_eq!(aquatint(&["report", &both, "--out", &again]).0, Some(0));
    assert_eq!(fs::read_to_string(&again).unwrap(), page, "a page is rebuilt from itself");
}

#[test]
fn the_command_refuses_what_it_cannot_read_or_write() {
    let scratch = TempDir::new().unwrap();
    let path = |name: &str| scratch.path().join(name).to_str().unwrap().to_string();
    let (good, bad, out) = (path("good.json"), path("bad.json"), path("out.html"));
    fs::write(&good, serde_json::to_vec(&run("", 1.0)).unwrap()).unwrap();
    fs::write(&bad, "{\"a\": 1}").unwrap();
    let refuse = |arguments: &[&str], part: &str| {
        let (code, said) = aquatint(arguments);
        assert_eq!(code, Some(2), "{said}");
        assert!(said.starts_with("aquatint: ") && said.lines().count() == 1 && said.contains(part), "{said}");
        assert!(!Path::new(&out).exists(), "something was written");
    };
    refuse(&["report", &good, &bad, "--out", &out], "bad.json");
    refuse(&["report", &path("none.json"), "--out", &out], "none.json");
    refuse(&["report", &good, "--out", &path("no/such/folder.html")], "--out");
    refuse(&["report", &good, "--out", scratch.path().to_str().unwrap()], "--out");
    refuse(&["quantize", "--out", &path("model"), "--report", &path("no/such/folder.html")], "--report");
    assert!(!Path::new(&path("model")).exists());
}
