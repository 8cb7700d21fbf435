//! Reads Rust source as far as the paths in it.

/// A path that begins with `crate`, `super` or `self`.
pub(super) struct Use {
    pub(super) line: usize,
    pub(super) written: String,
    /// From the crate's root.
    pub(super) to: Vec<String>,
}

pub(super) fn uses(tokens: &[Token<'_>], file: &[String]) -> Vec<Use> {
    let mut uses = Vec::new();
    // The modules that are written in this file, each with the depth of its braces.
    let (mut module, mut inner, mut depth) = (file.to_vec(), Vec::new(), 0);
    for (at, token) in tokens.iter().enumerate() {
        match token.kind {
            Kind::Sign('{') => {
                depth += 1;
                if let [.., before, name] = &tokens[..at]
                    && let (Kind::Word("mod"), Kind::Word(name)) = (before.kind, name.kind)
                {
                    module.push(name.to_owned());
                    inner.push(depth);
                }
            }
            Kind::Sign('}') => {
                if inner.last() == Some(&depth) {
                    module.pop();
                    inner.pop();
                }
                depth -= 1;
            }
            Kind::Word("crate" | "super" | "self")
                if leads_on(tokens, at) && !is_led_to(tokens, at) =>
            {
                for Leaf { path, .. } in leaves(tokens, at) {
                    let (written, to) = (path.join("::"), absolute(&module, &path));
                    uses.push(Use { line: token.line, written, to });
                }
            }
            _ => {}
        }
    }
    uses
}

/// A path of module `module`, from the crate's root.
pub(super) fn absolute(module: &[String], path: &[&str]) -> Vec<String> {
    let mut absolute = match path.first() {
        Some(&("super" | "self")) => module.to_vec(),
        _ => Vec::new(),
    };
    for segment in path {
        match *segment {
            "crate" | "self" => {}
            "super" => drop(absolute.pop()),
            name => absolute.push(name.to_owned()),
        }
    }
    absolute
}

/// Whether `::` comes after this token.
pub(super) fn leads_on(tokens: &[Token<'_>], at: usize) -> bool {
    matches!(tokens.get(at + 1..at + 3), Some([a, b]) if [a.kind, b.kind] == [Kind::Sign(':'); 2])
}

/// Whether it goes on a path: `::` comes before it, and something before that.
pub(super) fn is_led_to(tokens: &[Token<'_>], at: usize) -> bool {
    let Some([before, a, b]) = at.checked_sub(3).and_then(|from| tokens.get(from..at)) else {
        return false;
    };
    let is_something = matches!(before.kind, Kind::Word(_) | Kind::Sign('>'));
    is_something && [a.kind, b.kind] == [Kind::Sign(':'); 2]
}

/// One path of a tree such as `crate::{a, b::{c, d as e}}`, and the name that an import gives it.
pub(super) struct Leaf<'a> {
    pub(super) path: Vec<&'a str>,
    pub(super) name: &'a str,
}

/// The paths of the tree that begins at this token.
pub(super) fn leaves<'a>(tokens: &[Token<'a>], at: usize) -> Vec<Leaf<'a>> {
    let mut leaves = Vec::new();
    add_leaves(tokens, at, &[], &mut leaves);
    leaves
}

/// Returns where the tree ends.
fn add_leaves<'a>(
    tokens: &[Token<'a>],
    at: usize,
    before: &[&'a str],
    leaves: &mut Vec<Leaf<'a>>,
) -> usize {
    let kind = |at: usize| tokens.get(at).map(|token| token.kind);
    let last = before.last().copied().unwrap_or_default();
    match kind(at) {
        Some(Kind::Word(word)) => {
            let path = [before, &[word]].concat();
            if leads_on(tokens, at) {
                return add_leaves(tokens, at + 3, &path, leaves);
            }
            let name = if word == "self" { last } else { word };
            if let (Some(Kind::Word("as")), Some(Kind::Word(name))) = (kind(at + 1), kind(at + 2)) {
                leaves.push(Leaf { path, name });
                return at + 3;
            }
            leaves.push(Leaf { path, name });
            at + 1
        }
        Some(Kind::Sign('*')) => {
            leaves.push(Leaf { path: [before, &["*"]].concat(), name: "*" });
            at + 1
        }
        Some(Kind::Sign('{')) => {
            let mut at = at + 1;
            while !matches!(kind(at), None | Some(Kind::Sign('}'))) {
                let end = add_leaves(tokens, at, before, leaves);
                at = end + usize::from(kind(end) == Some(Kind::Sign(',')));
            }
            at + 1
        }
        // As in `crate::f::<T>()`; it must not stay here for ever.
        _ => {
            leaves.push(Leaf { path: before.to_vec(), name: last });
            at + 1
        }
    }
}

pub(super) struct Token<'a> {
    pub(super) line: usize,
    pub(super) kind: Kind<'a>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind<'a> {
    /// A name, a keyword, or a number.
    Word(&'a str),
    /// What is in a string.
    Text(&'a str),
    Sign(char),
}

/// Without comments, characters and lifetimes.
pub(super) fn tokens(text: &str) -> Vec<Token<'_>> {
    let (mut tokens, mut rest, mut line) = (Vec::new(), text, 1);
    while !rest.is_empty() {
        let (length, kind) = first_token(rest);
        tokens.extend(kind.map(|kind| Token { line, kind }));
        line += rest[..length].matches('\n').count();
        rest = &rest[length..];
    }
    tokens
}

fn first_token(rest: &str) -> (usize, Option<Kind<'_>>) {
    let first = rest.chars().next().expect("there is some");
    if rest.starts_with("//") {
        return (rest.find('\n').unwrap_or(rest.len()), None);
    }
    if rest.starts_with("/*") {
        return (length_of_comment(rest), None);
    }
    if let Some((length, text)) = string(rest) {
        return (length, Some(Kind::Text(text)));
    }
    if first == '\'' {
        return (length_of_character(rest), None);
    }
    if is_of_word(first) {
        let word = &rest[..rest.find(|c| !is_of_word(c)).unwrap_or(rest.len())];
        return (word.len(), Some(Kind::Word(word)));
    }
    (first.len_utf8(), (!first.is_whitespace()).then_some(Kind::Sign(first)))
}

pub(super) fn is_of_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

/// Comments of this kind may contain others.
fn length_of_comment(rest: &str) -> usize {
    let (mut depth, mut at) = (0, 0);
    while at < rest.len() {
        if rest[at..].starts_with("/*") {
            (depth, at) = (depth + 1, at + 2);
        } else if rest[at..].starts_with("*/") {
            (depth, at) = (depth - 1, at + 2);
            if depth == 0 {
                break;
            }
        } else {
            at += rest[at..].chars().next().map_or(1, char::len_utf8);
        }
    }
    at
}

/// The length of a string with its quotes, and what is between them.
fn string(rest: &str) -> Option<(usize, &str)> {
    for prefix in ["r", "br", "cr"] {
        let Some(after) = rest.strip_prefix(prefix) else { continue };
        let hashes = &after[..after.len() - after.trim_start_matches('#').len()];
        let Some(text) = after[hashes.len()..].strip_prefix('"') else { continue };
        let end = format!("\"{hashes}");
        let length = text.find(&end)?;
        return Some((prefix.len() + hashes.len() + 1 + length + end.len(), &text[..length]));
    }
    let text =
        ["", "b", "c"].iter().find_map(|prefix| rest.strip_prefix(prefix)?.strip_prefix('"'))?;
    let mut is_escaped = false;
    let length = text.find(|c| {
        let ends = c == '"' && !is_escaped;
        is_escaped = c == '\\' && !is_escaped;
        ends
    })?;
    Some((rest.len() - text.len() + length + 1, &text[..length]))
}

/// Of a character with its quotes, or of a lifetime.
fn length_of_character(rest: &str) -> usize {
    let inside = &rest[1..];
    let Some(first) = inside.chars().next() else { return 1 };
    if first == '\\' {
        // What is escaped may be a quote itself.
        let end = inside.char_indices().skip(2).find(|(_, c)| *c == '\'');
        return end.map_or(rest.len(), |(at, _)| at + 2);
    }
    if inside[first.len_utf8()..].starts_with('\'') {
        return first.len_utf8() + 2;
    }
    1 + inside.find(|c| !is_of_word(c)).unwrap_or(inside.len())
}
