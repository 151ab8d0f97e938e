//! A YAML document as a tree in which every node knows its place.
//!
//! Scalars stay text: `007` is an id if the field wants a text and a number if
//! it wants one, so nothing is decided here. Sizes, depth and the number of
//! nodes (aliases count each time) are bounded.

use std::collections::HashMap;

use granit_parser::{Event, Parser, ScalarStyle, Span};

/// Largest workflow file.
pub const MAX_BYTES: usize = 4 * 1024 * 1024;
const MAX_NODES: usize = 200_000;
const MAX_DEPTH: usize = 32;

/// Where something is in the file; both from 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Place {
    /// Line.
    pub line: usize,
    /// Column, in characters.
    pub column: usize,
}

impl Place {
    fn of(span: &Span) -> Self {
        Self { line: span.start.line().max(1), column: span.start.col() + 1 }
    }
}

/// One value of the document.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    /// Where it begins.
    pub at: Place,
    /// What it is.
    pub value: Value,
}

/// What a node can be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Value {
    /// Nothing, `~` or `null`.
    Null,
    /// Any scalar, as text.
    Scalar(String),
    /// A sequence.
    List(Vec<Node>),
    /// A mapping with text keys, in the order of the file.
    Map(Vec<(Key, Node)>),
}

/// A key of a mapping.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Key {
    /// Where it is.
    pub at: Place,
    /// Its text.
    pub name: String,
}

/// The document is no YAML, or not of the kind we accept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Malformed {
    /// Where.
    pub at: Place,
    /// What is wrong.
    pub message: String,
}

/// Reads one document.
///
/// # Errors
/// [`Malformed`] with the place of the first problem.
pub fn parse(text: &str) -> Result<Node, Malformed> {
    if text.len() > MAX_BYTES {
        return Err(malformed(Place::default(), format!("the file is larger than {} MiB", MAX_BYTES / 1024 / 1024)));
    }
    let mut builder = Builder { parser: Parser::new_from_str(text), anchors: HashMap::new(), nodes: 0 };
    builder.document()
}

fn malformed(at: Place, message: impl Into<String>) -> Malformed {
    Malformed { at, message: message.into() }
}

struct Builder<'input> {
    parser: Parser<'input, granit_parser::StrInput<'input>>,
    anchors: HashMap<usize, (Node, usize)>,
    nodes: usize,
}

impl<'input> Builder<'input> {
    fn next(&mut self) -> Result<(Event<'input>, Place), Malformed> {
        match self.parser.next_event() {
            Some(Ok((event, span))) => Ok((event, Place::of(&span))),
            Some(Err(error)) => {
                let at = Place { line: error.marker().line().max(1), column: error.marker().col() + 1 };
                Err(malformed(at, error.info()))
            }
            None => Ok((Event::StreamEnd, Place::default())),
        }
    }

    fn document(&mut self) -> Result<Node, Malformed> {
        let mut root = None;
        let mut documents = 0;
        loop {
            let (event, at) = self.next()?;
            match event {
                Event::StreamEnd => break,
                Event::DocumentStart(..) => {
                    documents += 1;
                    if documents > 1 {
                        return Err(malformed(at, "a workflow file is one document; here a second one begins"));
                    }
                }
                event if event.is_node() => root = Some(self.node(event, at, 0)?),
                _ => {}
            }
        }
        root.ok_or_else(|| malformed(Place { line: 1, column: 1 }, "the file is empty"))
    }

    fn node(&mut self, event: Event<'input>, at: Place, depth: usize) -> Result<Node, Malformed> {
        if depth > MAX_DEPTH {
            return Err(malformed(at, format!("nested more than {MAX_DEPTH} levels deep")));
        }
        let before = self.nodes;
        self.count(1, at)?;
        let (anchor, value) = match event {
            Event::Alias(id) => {
                let (node, size) = self
                    .anchors
                    .get(&id)
                    .cloned()
                    .ok_or_else(|| malformed(at, "an alias cannot stand inside of what it stands for"))?;
                self.count(size, at)?;
                // The place of the alias, so that errors point at the line that uses it.
                return Ok(Node { at, value: node.value });
            }
            Event::Scalar(text, style, anchor, _) => (anchor, scalar(&text, style)),
            Event::SequenceStart(_, anchor, _) => {
                let mut items = Vec::new();
                loop {
                    let (event, at) = self.next()?;
                    if matches!(event, Event::SequenceEnd) {
                        break;
                    }
                    items.push(self.node(event, at, depth + 1)?);
                }
                (anchor, Value::List(items))
            }
            Event::MappingStart(_, anchor, _) => (anchor, Value::Map(self.entries(depth)?)),
            _ => return Err(malformed(at, "a value is expected here")),
        };
        let node = Node { at, value };
        if anchor != 0 {
            self.anchors.insert(anchor, (node.clone(), self.nodes - before));
        }
        Ok(node)
    }

    fn entries(&mut self, depth: usize) -> Result<Vec<(Key, Node)>, Malformed> {
        let mut entries: Vec<(Key, Node)> = Vec::new();
        loop {
            let (event, at) = self.next()?;
            if matches!(event, Event::MappingEnd) {
                return Ok(entries);
            }
            let Value::Scalar(name) = self.node(event, at, depth + 1)?.value else {
                return Err(malformed(at, "keys have to be plain texts"));
            };
            if let Some((first, _)) = entries.iter().find(|(key, _)| key.name == name) {
                return Err(malformed(at, format!("{name:?} is given twice; first in line {}", first.at.line)));
            }
            let (event, value_at) = self.next()?;
            let value = self.node(event, value_at, depth + 1)?;
            entries.push((Key { at, name }, value));
        }
    }

    fn count(&mut self, nodes: usize, at: Place) -> Result<(), Malformed> {
        self.nodes += nodes;
        if self.nodes > MAX_NODES {
            return Err(malformed(at, format!("more than {MAX_NODES} values")));
        }
        Ok(())
    }
}

fn scalar(text: &str, style: ScalarStyle) -> Value {
    if style == ScalarStyle::Plain && matches!(text, "" | "~" | "null" | "Null" | "NULL") {
        return Value::Null;
    }
    Value::Scalar(text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fails(text: &str) -> String {
        let error = parse(text).unwrap_err();
        format!("{}:{}: {}", error.at.line, error.at.column, error.message)
    }

    #[test]
    fn values_know_their_place() {
        let root = parse("a: 1\nb:\n  - x\n  - {c: '2'}\n").unwrap();
        let Value::Map(entries) = root.value else { panic!("no map") };
        assert_eq!(entries[1].0, Key { at: Place { line: 2, column: 1 }, name: "b".to_owned() });
        let Value::List(items) = &entries[1].1.value else { panic!("no list") };
        assert_eq!(items[0].at, Place { line: 3, column: 5 });
        assert!(matches!(&items[1].value, Value::Map(map) if map[0].1.value == Value::Scalar("2".to_owned())));
    }

    #[test]
    fn aliases_repeat_what_they_stand_for() {
        let root = parse("a: &x [1, 2]\nb: *x\n").unwrap();
        let Value::Map(entries) = root.value else { panic!("no map") };
        assert_eq!(entries[0].1.value, entries[1].1.value);
    }

    #[test]
    fn what_is_refused_says_where() {
        assert_eq!(fails(""), "1:1: the file is empty");
        assert_eq!(fails("a: 1\nb: 2\na: 3\n"), "3:1: \"a\" is given twice; first in line 1");
        assert_eq!(fails("a: 1\n---\nb: 2\n"), "2:1: a workflow file is one document; here a second one begins");
        assert!(fails("a: [1, 2\nb: 3\n").starts_with("2:"), "{}", fails("a: [1, 2\nb: 3\n"));
        assert!(fails(&format!("{}{}", "[".repeat(60), "]".repeat(60))).contains("nested"));
        assert!(fails("[a]: 1\n").contains("keys have to be plain texts"));
        let bomb = "a: &a [1,1,1,1,1,1,1,1,1,1]\nb: &b [*a,*a,*a,*a,*a,*a,*a,*a,*a,*a]\nc: &c [*b,*b,*b,*b,*b,*b,*b,*b,*b,*b]\nd: &d [*c,*c,*c,*c,*c,*c,*c,*c,*c,*c]\ne: &e [*d,*d,*d,*d,*d,*d,*d,*d,*d,*d]\nf: [*e,*e,*e,*e,*e,*e,*e,*e,*e,*e]\n";
        assert!(fails(bomb).contains("more than"));
    }
}
