//! What the command line calls the settings that the library's messages speak of.

use aquatint::error::{Advice, Names, Setting};

/// The names of options.
pub struct OptionNames;

impl Names for OptionNames {
    fn name(&self, setting: Setting) -> &'static str {
        match setting {
            Setting::Method => "--method",
            Setting::Bits => "--bits",
            Setting::BitsFor => "--bits-for",
            Setting::Skip => "--skip",
            Setting::LmHead => "--lm-head",
            Setting::GroupSize => "--group-size",
            Setting::Grid => "--grid",
            Setting::Rotation => "--rotation",
            Setting::Alpha => "--alpha",
            Setting::AlphaOverrides => "--alpha-for",
            Setting::AlphaShrinkage => "--alpha-shrinkage",
            Setting::CorrectionDamping => "--correction-damping",
            Setting::RoundingDamping => "--rounding-damping",
            Setting::Samples => "--samples",
            Setting::SeqLen => "--seq-len",
            Setting::Blocks => "--blocks",
            Setting::Format => "--format",
            Setting::Mixture => "--type",
            Setting::Out => "--out",
            Setting::Replace => "--force",
            Setting::Journal => "--resume",
            Setting::Memory => "--memory",
            Setting::Scratch => "--scratch",
            Setting::Device => "--device",
            Setting::Precision => "--precision",
            Setting::Profile => "--profile",
            Setting::Against => "--against",
            Setting::Prompt => "--prompt",
            Setting::Context => "--context",
            Setting::Tokens => "--tokens",
            Setting::Temperature => "--temperature",
            Setting::Json => "--json",
            Setting::Report => "--report",
        }
    }

    fn advice(&self, advice: Advice) -> &'static str {
        match advice {
            Advice::SmallerRun => "use fewer or shorter samples, or --device cpu",
            Advice::RunAgain => "run again, with --device cpu if it happens again",
            Advice::OtherDevice => "try --device cpu, and please report this",
            Advice::ShorterSequences => "use shorter sequences or --device cpu",
            Advice::MoreRoom => "make room, or choose --out on another disk",
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;
    use crate::cli::args::Cli;

    #[test]
    fn every_name_is_an_option_of_a_command() {
        let program = Cli::command();
        let options = program.get_subcommands().flat_map(|command| command.get_arguments());
        let options: Vec<String> = options.filter_map(|option| Some(format!("--{}", option.get_long()?))).collect();
        for &setting in Setting::ALL {
            let name = OptionNames.name(setting);
            assert!(options.iter().any(|option| option == name), "{name}");
        }
    }
}
