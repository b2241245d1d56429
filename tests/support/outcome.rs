//! What came of a run.

use std::time::Duration;

/// How a run ended.
#[derive(Debug)]
pub struct Outcome {
    /// The exit code; none if a signal ended the program.
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
    pub duration: Duration,
}

impl Outcome {
    /// Panics, with everything the program printed, if the exit code is another one.
    #[track_caller]
    pub fn assert_code(&self, expected: i32) -> &Outcome {
        assert!(
            self.code == Some(expected),
            "expected exit code {expected}, got {:?}\n{}",
            self.code,
            self.output()
        );
        self
    }

    /// Panics, with everything the program printed, if a text is not in its standard error.
    #[track_caller]
    pub fn assert_stderr_contains(&self, expected: &str) -> &Outcome {
        assert!(
            self.stderr.contains(expected),
            "expected {expected:?} in the standard error\n{}",
            self.output()
        );
        self
    }

    /// Panics unless the run ended with that code and one error, the last line, that has these
    /// words; gives that line.
    #[track_caller]
    pub fn assert_one_error(&self, code: i32, words: &[&str]) -> &str {
        self.assert_code(code);
        let last = self.stderr.lines().last().unwrap_or_default();
        let errors = self
            .stderr
            .lines()
            .filter(|line| line.starts_with("error:"));
        assert_eq!(errors.count(), 1, "one sentence\n{}", self.stderr);
        for word in words.iter().chain(&["error: "]) {
            assert!(last.contains(word), "{word:?} in the last line: {last}");
        }
        last
    }

    pub(super) fn output(&self) -> String {
        format!("--- stdout\n{}\n--- stderr\n{}", self.stdout, self.stderr)
    }
}
