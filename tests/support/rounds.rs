//! How long the tests run that repeat something until it would have failed.
//!
//! `LOCKSPACE_TEST_TIMES=20` makes them repeat it 20 times as often, and gives them that much time.

use std::env;
use std::time::Duration;

/// How many times as often as usual.
pub(crate) fn times() -> u32 {
    let Some(times) = env::var_os("LOCKSPACE_TEST_TIMES") else { return 1 };
    let times = times.to_str().and_then(|times| times.parse().ok());
    times.filter(|times| *times > 0).expect("LOCKSPACE_TEST_TIMES is a number above 0")
}

/// So many rounds, or as many times that as was asked for.
pub(crate) fn rounds(usual: u64) -> u64 {
    usual * u64::from(times())
}

/// What takes longer hangs.
pub(crate) fn patience(usual: Duration) -> Duration {
    usual * times()
}
