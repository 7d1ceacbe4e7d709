//! Finds the keys of one table of rotary angles, which may stand in several places, and checks them.

use serde_json::Value;

use super::{Rope, RopeDefaults, RopeScaling};
use crate::family::config::fields::Fields;
use crate::{Error, Result};

/// The objects of `config.json` that describe one table.
#[derive(Clone, Copy)]
pub(super) struct Keys<'a> {
    /// The top level.
    config: Fields<'a>,
    /// The object of transformers 5, and that of the older form.
    inner: [Option<Fields<'a>>; 2],
    defaults: RopeDefaults,
}

impl<'a> Keys<'a> {
    /// The keys of the table of all layers. Errors: `Error::Input` if `rope_parameters` has tables of kinds of layers.
    pub fn of_all_layers(config: Fields<'a>, defaults: RopeDefaults) -> Result<Self> {
        let parameters = config.object("rope_parameters")?;
        if parameters.is_some_and(|parameters| parameters.object.values().any(Value::is_object)) {
            return Err(config.refuse("rope_parameters", "one description of RoPE for all layers"));
        }
        Self::new(config, parameters, defaults)
    }

    /// The keys of the table of one kind of layer. Errors: `Error::Input` if `rope_parameters` has one table for all.
    pub fn of_kind(config: Fields<'a>, kind: &str, defaults: RopeDefaults) -> Result<Self> {
        let parameters = config.object("rope_parameters")?;
        if parameters.is_some_and(|parameters| !parameters.object.values().all(|v| v.is_object() || v.is_null())) {
            return Err(config.refuse("rope_parameters", &format!("\"{kind}\" as an object in \"rope_parameters\"")));
        }
        let parameters = parameters.map(|parameters| parameters.object(kind)).transpose()?.flatten();
        Self::new(config, parameters, defaults)
    }

    fn new(config: Fields<'a>, parameters: Option<Fields<'a>>, defaults: RopeDefaults) -> Result<Self> {
        let older = defaults.scaling_key.map(|key| config.object(key)).transpose()?.flatten();
        Ok(Self { config, inner: [parameters, older], defaults })
    }

    /// The objects for RoPE that the file has.
    pub fn inner(&self) -> impl Iterator<Item = Fields<'a>> + use<'a> {
        self.inner.into_iter().flatten()
    }

    /// The places of `key` in the objects for RoPE.
    fn places<'k>(&self, key: &'k str) -> impl Iterator<Item = (Fields<'a>, &'k str)> + use<'a, 'k> {
        self.inner().map(move |fields| (fields, key))
    }

    /// The table, which has `rotated` columns of each head. Errors: `Error::Input` if that is an odd number.
    pub fn rope(&self, rotated: usize) -> Result<Rope> {
        if !rotated.is_multiple_of(2) {
            let found = format!("heads {rotated} columns wide, all of which rotate in pairs");
            let remedy = "correct the file or download it again";
            return Err(Error::input(self.config.subject, found, "heads of an even width", remedy));
        }
        let top = self.defaults.theta_key.map(|key| (self.config, key));
        let theta = agreed(self.places("rope_theta").chain(top), Fields::precise)?.or(self.defaults.theta);
        let theta = theta.ok_or_else(|| self.config.refuse("rope_parameters", "an object with a \"rope_theta\""))?;
        if theta <= 1.0 {
            let found = format!("a base of {theta} for RoPE");
            return Err(Error::input(
                self.config.subject,
                found,
                "a base above 1",
                "correct the file or download it again",
            ));
        }
        let mut scaling = None;
        for fields in self.inner() {
            let read = self.scaling(fields, rotated)?;
            if scaling.is_some_and(|other| other != read) {
                let found = "\"rope_parameters\" and \"rope_scaling\" that differ";
                return Err(Error::input(
                    self.config.subject,
                    found,
                    "the same scaling in both",
                    "remove the wrong one",
                ));
            }
            scaling = Some(read);
        }
        Ok(Rope { rotated, theta, scaling: scaling.unwrap_or(RopeScaling::None), growth: None })
    }

    /// The share of the columns of a head that is rotated, if the file has it.
    pub fn share(&self) -> Result<Option<f64>> {
        let key = "partial_rotary_factor";
        agreed(self.places(key).chain([(self.config, key)]), Fields::precise)
    }

    /// β of the growth with the position, if the file has it.
    pub fn beta(&self) -> Result<Option<f64>> {
        agreed(self.places("llama_4_scaling_beta"), Fields::not_negative)
    }

    /// Columns of a head in the table. `default_share`: the share of the head where the file does not give it.
    pub fn rotated(&self, head_dim: usize, default_share: f64) -> Result<usize> {
        for fields in self.inner() {
            if rope_type(fields)? == "proportional" {
                return Ok(head_dim);
            }
        }
        let share = self.share()?.unwrap_or(default_share);
        let columns = (head_dim as f64 * share) as usize;
        if columns == 0 || columns > head_dim || !columns.is_multiple_of(2) {
            let expected = format!("a share of the head's {head_dim} columns that is an even number of columns");
            return Err(share_refused(self.config, share, &expected));
        }
        Ok(columns)
    }

    /// Context length of pre-training, from `fields` or from the top level.
    pub fn original(&self, fields: Fields<'a>) -> Result<usize> {
        let key = "original_max_position_embeddings";
        let given = agreed([(fields, key), (self.config, key)], Fields::count)?;
        match given.or(self.defaults.original_max_position_embeddings) {
            Some(original) => Ok(original),
            None => self.config.required_count("max_position_embeddings"),
        }
    }

    /// The ratio of the longest context to the original one: `factor` or, if that is absent, the ratio itself.
    fn ratio(&self, fields: Fields<'a>, original: usize) -> Result<f64> {
        match fields.precise("factor")? {
            Some(factor) => Ok(factor),
            None => Ok(self.config.required_count("max_position_embeddings")? as f64 / original as f64),
        }
    }

    /// Reads the scaling that `fields` describes. `rotated`: columns of a head in the table.
    fn scaling(&self, fields: Fields<'a>, rotated: usize) -> Result<RopeScaling> {
        match rope_type(fields)? {
            "default" => Ok(RopeScaling::None),
            "linear" => Ok(RopeScaling::Linear { factor: fields.required_precise("factor")? }),
            "llama3" => self.llama3(fields),
            "yarn" => self.yarn(fields),
            // "su" is the older name of the scaling in files of Phi-3.
            "longrope" | "su" => self.long_rope(fields, rotated),
            "proportional" => self.proportional(fields, rotated),
            other => {
                let remedy = match other {
                    "dynamic" => "choose another model; the angles of this one change with the length of the text",
                    _ => "choose a model with one of these; the others are not implemented",
                };
                let expected = "\"default\", \"linear\", \"llama3\", \"yarn\", \"longrope\" or \"proportional\"";
                Err(Error::input(fields.subject, format!("rope type \"{other}\""), expected, remedy))
            }
        }
    }

    fn llama3(&self, fields: Fields<'a>) -> Result<RopeScaling> {
        let low_freq_factor = fields.required_precise("low_freq_factor")?;
        let high_freq_factor = fields.required_precise("high_freq_factor")?;
        if high_freq_factor <= low_freq_factor {
            return Err(fields.refuse("high_freq_factor", "a number above low_freq_factor"));
        }
        Ok(RopeScaling::Llama3 {
            factor: fields.required_precise("factor")?,
            low_freq_factor,
            high_freq_factor,
            original_max_position_embeddings: self.original(fields)?,
        })
    }

    fn yarn(&self, fields: Fields<'a>) -> Result<RopeScaling> {
        let original = self.original(fields)?;
        let factor = self.ratio(fields, original)?;
        let mscale = |key| Ok::<_, Error>(fields.not_negative(key)?.filter(|&mscale| mscale > 0.0));
        // As in transformers, a zero is no number, and one of the two without the other counts for nothing.
        let default = match (mscale("mscale")?, mscale("mscale_all_dim")?) {
            (Some(mscale), Some(of_all)) => yarn_magnitude(factor, mscale) / yarn_magnitude(factor, of_all),
            _ => yarn_magnitude(factor, 1.0),
        };
        if !default.is_finite() {
            return Err(fields.refuse("mscale", "smaller numbers in mscale and mscale_all_dim"));
        }
        let beta_fast = fields.precise("beta_fast")?.unwrap_or(32.0);
        let beta_slow = fields.precise("beta_slow")?.unwrap_or(1.0);
        if beta_fast < beta_slow {
            return Err(fields.refuse("beta_fast", &format!("at least the {beta_slow} of beta_slow")));
        }
        Ok(RopeScaling::Yarn {
            factor,
            beta_fast,
            beta_slow,
            attention_factor: fields.precise("attention_factor")?.unwrap_or(default),
            truncate: fields.flag("truncate")?.unwrap_or(true),
            original_max_position_embeddings: original,
        })
    }

    fn long_rope(&self, fields: Fields<'a>, rotated: usize) -> Result<RopeScaling> {
        let original = self.original(fields)?;
        let factor = self.ratio(fields, original)?;
        let default = if factor <= 1.0 { 1.0 } else { (1.0 + factor.ln() / (original as f64).ln()).sqrt() };
        if !default.is_finite() {
            return Err(fields.refuse("original_max_position_embeddings", "a whole number above 1"));
        }
        Ok(RopeScaling::LongRope {
            short_factor: fields.required_list("short_factor", rotated / 2)?,
            long_factor: fields.required_list("long_factor", rotated / 2)?,
            attention_factor: fields.precise("attention_factor")?.unwrap_or(default),
            original_max_position_embeddings: original,
        })
    }

    fn proportional(&self, fields: Fields<'a>, rotated: usize) -> Result<RopeScaling> {
        let share = self.share()?.unwrap_or(1.0);
        // Each angle turns two columns.
        let angles = (rotated as f64 * share / 2.0) as usize;
        if angles == 0 || share > 1.0 {
            return Err(share_refused(self.config, share, "a share of the head, up to 1.0, with at least one angle"));
        }
        Ok(RopeScaling::Proportional { turning: 2 * angles, factor: fields.precise("factor")?.unwrap_or(1.0) })
    }
}

/// The error for a share of the columns of a head that cannot be used.
pub(super) fn share_refused(config: Fields<'_>, share: f64, expected: &str) -> Error {
    let found = format!("\"partial_rotary_factor\": {share}");
    Error::input(config.subject, found, expected, "correct the file or download it again")
}

/// The factor that YaRN recommends for cosines and sines.
fn yarn_magnitude(factor: f64, mscale: f64) -> f64 {
    if factor <= 1.0 { 1.0 } else { 0.1 * mscale * factor.ln() + 1.0 }
}

/// The name of the scaling, under its present or its older key.
fn rope_type(fields: Fields<'_>) -> Result<&str> {
    Ok(agreed([(fields, "rope_type"), (fields, "type")], |fields, key| fields.text(key))?.unwrap_or("default"))
}

/// Reads a value that may stand in several places. `None` if it is in none of them.
///
/// Errors: `Error::Input` if two places have different values.
fn agreed<'a, 'k, T: PartialEq>(
    places: impl IntoIterator<Item = (Fields<'a>, &'k str)>,
    read: impl Fn(&Fields<'a>, &'k str) -> Result<Option<T>>,
) -> Result<Option<T>> {
    let mut first = None;
    for (fields, key) in places {
        let Some(value) = read(&fields, key)? else { continue };
        match &first {
            None => first = Some((fields.shown(key), value)),
            Some((_, other)) if *other == value => {}
            Some((shown, _)) => {
                let found = format!("{} beside {shown}", fields.shown(key));
                return Err(Error::input(fields.subject, found, "the same value in both", "remove the wrong one"));
            }
        }
    }
    Ok(first.map(|(_, value)| value))
}
