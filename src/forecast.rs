//! What a run would do.

use crate::error::Error;
use crate::options::Options;

/// Forecasts one partition.
///
/// # Errors
/// [`Error`] where it does not, or cannot be told.
pub async fn run(_options: Options) -> Result<(), Error> {
    Err(Error::Configuration("not there yet".to_owned()))
}
