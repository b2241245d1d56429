//! Reads `.env`, which may be shared with other programs: lines that do not set one of our variables
//! are ignored, however malformed.
//!
//! dotenvy parses the lines and expands `$NAME`, but this module splits them: given another program's
//! value with a stray quote, dotenvy would swallow all lines up to the next quote.

use super::variables::VARIABLES;

/// Our variables in the content of a `.env` file, in order.
///
/// # Errors
/// A message with the number and variable of the first line that cannot be parsed, or that the file is
/// UTF-16. It never shows the value, which may be a password.
pub(super) fn settings(content: &[u8]) -> Result<Vec<(String, String)>, String> {
    let text = text_of(content)?;
    let mut understood = String::new();
    let lines: Vec<&str> = text.lines().collect();
    let mut number = 0;
    while number < lines.len() {
        let mut length = lines_of_value(&lines[number..]);
        let mut line = lines[number..number + length].join("\n");
        if length > 1 && !is_understood(&line) {
            // The quote is never closed: the one further down belongs to another value.
            length = 1;
            line = lines[number].to_owned();
        }
        if !is_understood(&line) && is_understood(line.trim_end()) {
            // dotenvy rejects blanks after a closing quote.
            line.truncate(line.trim_end().len());
        }
        let ours = name_of(&line).filter(|name| VARIABLES.contains(name));
        if is_understood(&line) {
            understood.push_str(&line);
            understood.push('\n');
        } else if let Some(name) = ours {
            return Err(format!(
                "cannot parse line {} of the file .env ({name}): write {name}=value, and put values with \
                 spaces, quotes, # or $ in single or double quotes",
                number + 1
            ));
        }
        number += length;
    }
    let pairs = dotenvy::from_read_iter(understood.as_bytes()).filter_map(Result::ok);
    Ok(pairs
        .filter(|(name, _)| VARIABLES.contains(&name.as_str()))
        .collect())
}

/// The content as text, without the byte order mark that some editors write.
fn text_of(content: &[u8]) -> Result<String, String> {
    if content.starts_with(&[0xFF, 0xFE]) || content.starts_with(&[0xFE, 0xFF]) {
        return Err("the file .env is UTF-16: save it as UTF-8".to_owned());
    }
    let content = content.strip_prefix(b"\xEF\xBB\xBF").unwrap_or(content);
    let mut text = String::with_capacity(content.len());
    for (number, line) in content.split(|&byte| byte == b'\n').enumerate() {
        let line = String::from_utf8_lossy(line);
        if let Some(name) = name_of(&line)
            && VARIABLES.contains(&name)
            && line.contains(char::REPLACEMENT_CHARACTER)
        {
            return Err(format!(
                "line {} of the file .env ({name}) is not valid UTF-8: save the file as UTF-8",
                number + 1
            ));
        }
        text.push_str(&line);
        text.push('\n');
    }
    Ok(text)
}

/// The variable name at the beginning of a line.
fn name_of(line: &str) -> Option<&str> {
    let line = line.trim_start();
    let line = line.strip_prefix("export ").unwrap_or(line).trim_start();
    let end = line.find(|c: char| !(c.is_ascii_alphanumeric() || c == '_'));
    Some(&line[..end.unwrap_or(line.len())]).filter(|name| !name.is_empty())
}

/// How many lines the first value spans: up to its closing quote, if it has one.
fn lines_of_value(lines: &[&str]) -> usize {
    let Some((_, value)) = lines[0].split_once('=') else {
        return 1;
    };
    let value = value.trim_start();
    let Some(quote) = value.chars().next().filter(|c| matches!(c, '"' | '\'')) else {
        return 1;
    };
    if after_quote(&value[1..], quote).is_some() {
        return 1;
    }
    let rest = lines[1..].iter().enumerate();
    let mut ends = rest.filter_map(|(number, line)| Some((number, after_quote(line, quote)?)));
    match ends.next() {
        // Text after the quote means that it more likely opens another value.
        Some((number, after)) if after.is_empty() || after.starts_with('#') => number + 2,
        _ => 1,
    }
}

/// The rest after the closing quote, if there is one.
fn after_quote(text: &str, quote: char) -> Option<&str> {
    let mut is_escaped = false;
    let end = text.find(|c: char| {
        let is_end = c == quote && !is_escaped;
        is_escaped = c == '\\' && !is_escaped && quote == '"';
        is_end
    })?;
    Some(text[end + 1..].trim())
}

/// Whether dotenvy parses it.
fn is_understood(line: &str) -> bool {
    dotenvy::from_read_iter(line.as_bytes()).all(|pair| pair.is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(content: &str) -> Result<Vec<(String, String)>, String> {
        settings(content.as_bytes())
    }

    #[track_caller]
    fn assert_reads(content: &str, expected: &[(&str, &str)]) {
        let pairs = of(content).unwrap();
        let pairs: Vec<(&str, &str)> = pairs
            .iter()
            .map(|(name, value)| (name.as_str(), value.as_str()))
            .collect();
        assert_eq!(pairs, expected, "{content:?}");
    }

    #[test]
    fn blanks_at_the_end_of_a_line_do_not_matter() {
        for content in ["DRY_RUN=\"true\" ", "DRY_RUN='true'\t", "DRY_RUN=true  "] {
            assert_reads(content, &[("DRY_RUN", "true")]);
        }
    }

    #[test]
    fn lines_of_other_programs_do_not_matter() {
        let url = ("CLICKHOUSE_URL", "http://host:8123");
        for other in [
            "LANGFUSE_INIT_USER_NAME=Jane Doe",
            "NAME=Jane's house",
            "NAME=\"Jane",
            "a line of words",
            "KEY=\"-----BEGIN KEY-----\nMIIE=\nCLICKHOUSE_DB=inside\n-----END KEY-----\"",
            "=",
            "1=2=3",
            "NAME=${",
            "# CLICKHOUSE_DB='",
        ] {
            let content = format!("{other}\nCLICKHOUSE_URL=http://host:8123\n{other}\n");
            assert_reads(&content, &[url]);
        }
    }

    #[test]
    fn marks_and_ends_of_lines_do_not_matter() {
        let expected = [("PARTITION", "202406"), ("CLICKHOUSE_PASSWORD", "a b")];
        assert_reads(
            "\u{feff}PARTITION=202406\r\n\r\nexport CLICKHOUSE_PASSWORD='a b'\r\n",
            &expected,
        );
        assert_reads("PARTITION=202406\nCLICKHOUSE_PASSWORD=\"a b\"", &expected);
    }

    #[test]
    fn a_value_may_name_another_one() {
        assert_reads(
            "SECRET=hidden\nNAME=Jane Doe\nCLICKHOUSE_PASSWORD=\"${SECRET}!\"\n",
            &[("CLICKHOUSE_PASSWORD", "hidden!")],
        );
    }

    #[test]
    fn a_line_of_ours_that_cannot_be_read_is_named_without_its_value() {
        for (content, line) in [
            ("# words\nCLICKHOUSE_PASSWORD=two words", "line 2"),
            ("CLICKHOUSE_PASSWORD='words", "line 1"),
            ("CLICKHOUSE_PASSWORD: words", "line 1"),
            ("export CLICKHOUSE_PASSWORD words", "line 1"),
            ("CLICKHOUSE_PASSWORD=\"words\nA=\"1\"", "line 1"),
            (
                "NAME=Jane Doe\r\n\r\nCLICKHOUSE_PASSWORD=it's words\r\n",
                "line 3",
            ),
        ] {
            let error = of(content).unwrap_err();
            assert!(error.contains(line), "{error}");
            assert!(error.contains("CLICKHOUSE_PASSWORD"), "{error}");
            assert!(!error.contains("words"), "{error}");
        }
        let error = settings(b"CLICKHOUSE_PASSWORD=caf\xE9\n").unwrap_err();
        assert!(
            error.contains("line 1") && error.contains("UTF-8"),
            "{error}"
        );
        assert!(settings(b"NAME=caf\xE9\nPARTITION=202406\n").is_ok());
        assert!(settings(b"\xFF\xFEP\0").unwrap_err().contains("UTF-16"));
    }
}
