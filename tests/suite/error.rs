//! Messages in the names of the library, of a made-up front end, and of the page.

use std::collections::BTreeSet;

use aquatint::Error;
use aquatint::checkpoint::{Format, formats::gptq::Gptq};
use aquatint::error::{Advice, LibraryNames, Names, Setting};
use aquatint::family::LinearSpec;
use aquatint::quant::QuantizeOptions;
use page_names::PageNames;

// The page itself builds for browsers alone.
#[path = "../../web/src/names.rs"]
mod page_names;

/// A front end that calls everything by one name.
struct Dials;

impl Names for Dials {
    fn name(&self, _: Setting) -> &'static str {
        "dial"
    }

    fn advice(&self, _: Advice) -> &'static str {
        "turn it down"
    }

    fn subject(&self, setting: Setting) -> String {
        format!("The {}", self.name(setting))
    }
}

#[test]
fn settings_are_said_in_the_names_of_the_front_end() {
    let error = QuantizeOptions { samples: 1, ..QuantizeOptions::default() }.validate().unwrap_err();
    let expected = "found 1, expected at least 2 with an automatic α, which is chosen on held-out windows";
    assert_eq!(error.to_string(), format!("samples: {expected}; use more samples, or alpha 0.5"));
    assert_eq!(error.sentence(&Dials), format!("The dial: {expected}; use more samples, or dial 0.5"));
    let error = Error::input("text.txt", "3 tokens", "4", Setting::Samples);
    assert_eq!(error.sentence(&Dials), "text.txt: found 3 tokens, expected 4; dial");
}

#[test]
fn advice_is_that_of_the_front_end() {
    let error = Error::DeviceLost { device: "card".to_string(), reason: "reset".to_string() };
    assert_eq!(error.to_string(), "card: the GPU was lost (reset); run again, on the CPU if it happens again");
    assert_eq!(error.sentence(&Dials), "card: the GPU was lost (reset); turn it down");
}

#[test]
fn an_error_of_a_file_has_a_source() {
    let source = std::io::Error::other("it is busy");
    let error = Error::Io { path: "a/b".into(), action: "read", source, remedy: "wait".into() };
    assert_eq!(error.to_string(), "a/b: cannot read (it is busy); wait");
    assert_eq!(std::error::Error::source(&error).unwrap().to_string(), "it is busy");
}

#[test]
fn every_table_tells_settings_apart() {
    for names in [&LibraryNames as &dyn Names, &PageNames] {
        let different: BTreeSet<&str> = Setting::ALL.iter().map(|&setting| names.name(setting)).collect();
        assert_eq!(different.len(), Setting::ALL.len());
    }
}

#[test]
fn the_page_has_words_of_its_own() {
    let said = |error: Error| error.sentence(&PageNames);
    let device = || "card".to_string();
    let lost = said(Error::DeviceLost { device: device(), reason: "reset".to_string() });
    assert!(lost.ends_with("; reload the page and run again, with fewer samples if it happens again"), "{lost}");
    let full = said(Error::OutOfMemory { device: device(), bytes: 4, what: "H".to_string() });
    assert!(full.ends_with("; choose fewer or shorter samples, or use the command line"), "{full}");
    let refused = said(Error::Gpu { device: device(), message: "no".to_string() });
    assert!(refused.ends_with("; try another browser or the command line, and please report this"), "{refused}");

    let storable = |columns, bits, group_size| {
        let linear = LinearSpec::new("layer", 96, columns);
        Gptq.grid(&linear, crate::small_model::wish(bits, group_size, true))
    };
    let groups = said(storable(576, 4, 128).unwrap_err());
    assert!(groups.starts_with("the group size: found 128 for the 576 inputs of layer"), "{groups}");
    assert!(groups.ends_with("; choose the group size 64"), "{groups}");
    let words = said(storable(104, 3, 104).unwrap_err());
    assert!(words.ends_with("; choose other bits, or the format \"float\""), "{words}");
    let samples = said(QuantizeOptions { samples: 1, ..QuantizeOptions::default() }.validate().unwrap_err());
    assert!(samples.starts_with("the samples: found 1"), "{samples}");
    assert!(samples.ends_with("; use more samples, or α 0.5"), "{samples}");
}
