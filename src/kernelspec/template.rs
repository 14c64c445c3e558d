//! PURE. The two kinds of templates in a kernelspec: `{name}` in argv, `${NAME}` in env.

use std::path::Path;

/// Stands for the connection file's path in argv.
pub const CONNECTION_FILE: &str = "{connection_file}";

/// The command line for one start of the engine.
pub fn expand_argv(argv: &[String], connection_file: &Path) -> Vec<String> {
    let connection_file = connection_file.to_string_lossy();
    argv.iter()
        .map(|arg| arg.replace(CONNECTION_FILE, &connection_file))
        .collect()
}

/// Replaces what does not change from start to start (jupyter_client: `resource_dir`, `prefix`). Other braces stay.
pub(super) fn expand_fixed(argv: &mut [String], resource_dir: &Path, prefix: Option<&Path>) {
    for arg in argv {
        *arg = arg.replace("{resource_dir}", &resource_dir.to_string_lossy());
        if let Some(prefix) = prefix {
            *arg = arg.replace("{prefix}", &prefix.to_string_lossy());
        }
    }
}

/// Python's `string.Template.safe_substitute`, which jupyter_client applies to env: `$NAME`, `${NAME}`, `$$`; what
/// has no value, or no valid name, stays as it is.
pub fn expand_env(template: &str, value_of: impl Fn(&str) -> Option<String>) -> String {
    let mut out = String::with_capacity(template.len());
    let mut rest = template;
    while let Some((before, after)) = rest.split_once('$') {
        out.push_str(before);
        if let Some(after) = after.strip_prefix('$') {
            out.push('$');
            rest = after;
            continue;
        }
        let braced = after.strip_prefix('{');
        let name = identifier(braced.unwrap_or(after));
        let closed = braced.is_none_or(|inner| inner[name.len()..].starts_with('}'));
        let brace_bytes = if braced.is_some() { 2 } else { 0 };
        match value_of(name).filter(|_| !name.is_empty() && closed) {
            Some(value) => {
                out.push_str(&value);
                rest = &after[name.len() + brace_bytes..];
            }
            None => {
                out.push('$');
                rest = after;
            }
        }
    }
    out.push_str(rest);
    out
}

/// The identifier that a text begins with, maybe empty.
fn identifier(text: &str) -> &str {
    let starts = text.starts_with(|c: char| c == '_' || c.is_ascii_alphabetic());
    let end = text
        .find(|c: char| c != '_' && !c.is_ascii_alphanumeric())
        .unwrap_or(text.len());
    if starts { &text[..end] } else { "" }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn expand(template: &str) -> String {
        expand_env(template, |name| match name {
            "A" => Some("1".to_owned()),
            "LONG_2" => Some("two$A".to_owned()),
            _ => None,
        })
    }

    #[test]
    fn env_is_expanded_as_python_does_it() {
        // The right-hand sides are what string.Template(...).safe_substitute gives.
        for (template, expected) in [
            ("/x:$A", "/x:1"),
            ("${A}b", "1b"),
            ("$Ab", "$Ab"),
            ("${LONG_2}", "two$A"),
            ("$$A $$", "$A $"),
            ("$ ${} ${A", "$ ${} ${A"),
            ("${A-x} $2 ${2}", "${A-x} $2 ${2}"),
            ("$NONE:${NONE}:", "$NONE:${NONE}:"),
            ("$A$A.é$", "11.é$"),
        ] {
            assert_eq!(expand(template), expected, "{template}");
        }
    }

    #[test]
    fn argv_knows_three_names() {
        let mut argv = [
            "{prefix}/bin/x",
            "-f={connection_file}",
            "{resource_dir}/a.js",
            "{other}",
        ]
        .map(String::from);
        expand_fixed(&mut argv, Path::new("/r"), Some(Path::new("/p")));
        let argv = expand_argv(&argv, Path::new("/c/k.json"));
        assert_eq!(argv, ["/p/bin/x", "-f=/c/k.json", "/r/a.js", "{other}"]);
    }

    proptest! {
        #[test]
        fn any_template_is_expanded_without_a_panic(template in "[$A{}éx_2]{0,12}") {
            expand(&template);
        }
    }
}
