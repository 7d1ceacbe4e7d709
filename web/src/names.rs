//! The page's names for the settings in the library's messages. Most names are labels of the page's form. A setting that the page
//! does not offer exists on the command line only, and its name says so.

use aquatint::error::{Advice, Names, Setting};

/// The page's table of names.
pub struct PageNames;

impl Names for PageNames {
    fn name(&self, setting: Setting) -> &'static str {
        match setting {
            Setting::Method => "method",
            Setting::Bits => "bits",
            Setting::GroupSize => "group size",
            Setting::Grid => "grid",
            Setting::Alpha => "α",
            Setting::Samples => "samples",
            Setting::SeqLen => "length",
            Setting::Format => "format",
            Setting::Mixture => "type",
            Setting::Prompt => "prompt",
            Setting::Tokens => "tokens",
            Setting::Temperature => "temperature",
            Setting::Context => "room for prompt and tokens",
            Setting::Device => "GPU",
            Setting::Precision => "kernels of the GPU (command line only)",
            Setting::BitsFor => "bits of single layers (command line only)",
            Setting::Skip => "patterns of skipped layers (command line only)",
            Setting::LmHead => "quantized output matrix (command line only)",
            Setting::Rotation => "rotation (command line only)",
            Setting::AlphaOverrides => "α of single layers (command line only)",
            Setting::AlphaShrinkage => "shrinkage of α (command line only)",
            Setting::CorrectionDamping => "damping of the correction (command line only)",
            Setting::RoundingDamping => "damping of the rounding (command line only)",
            Setting::Blocks => "number of blocks (command line only)",
            Setting::Out => "place for the result (command line only)",
            Setting::Replace => "replacing of files (command line only)",
            Setting::Journal => "records of a stopped run (command line only)",
            Setting::Memory => "memory (command line only)",
            Setting::Scratch => "directory for hidden states (command line only)",
            Setting::Profile => "times of kernels (command line only)",
            Setting::Against => "model to compare with (command line only)",
            Setting::Json => "record of a run (command line only)",
            Setting::Report => "page of a run (command line only)",
        }
    }

    fn advice(&self, advice: Advice) -> &'static str {
        match advice {
            Advice::SmallerRun => "choose fewer or shorter samples, or use the command line",
            Advice::RunAgain => "reload the page and run again, with fewer samples if it happens again",
            Advice::OtherDevice => "try another browser or the command line, and please report this",
            Advice::ShorterSequences => "choose a shorter length",
            Advice::MoreRoom => "make room, or let this site store more",
        }
    }

    fn subject(&self, setting: Setting) -> String {
        match setting {
            Setting::Alpha => self.name(setting).to_owned(),
            _ => format!("the {}", self.name(setting)),
        }
    }

    fn value(&self, setting: Setting, value: &str) -> String {
        match setting {
            Setting::Device => "the command line".to_owned(),
            Setting::Format => format!("the format \"{value}\""),
            _ => format!("{} {value}", self.subject(setting)),
        }
    }
}
