//! Text to [`Node`]: a lexer that knows positions, and recursive descent.

use kiln_error::{Error, Kind};
use kiln_time::Timestamp;

use crate::{Literal, Node, Operator};

/// Characters of a filter at most.
const MAX_LENGTH: usize = 8192;
/// Nested parentheses and `not`s at most.
const MAX_DEPTH: usize = 50;
/// Conditions at most.
const MAX_CONDITIONS: usize = 500;
/// Characters of the filter an error repeats.
const SHOWN: usize = 256;

/// What is wrong, and at which character (from 0).
#[derive(Debug)]
pub(crate) struct Problem {
    at: usize,
    what: String,
}

impl Problem {
    fn new(at: usize, what: impl Into<String>) -> Self {
        Self { at, what: what.into() }
    }

    pub(crate) fn into_error(self, text: &str) -> Error {
        let reason = format!("{} at position {}", self.what, self.at + 1);
        let shown: String = text.chars().take(SHOWN).collect();
        Error::new(Kind::InvalidArgument, "InvalidQueryParameterValue", format!("$filter: {reason}"))
            .with_detail("QueryParameterName", "$filter")
            .with_detail("QueryParameterValue", shown)
            .with_detail("Reason", reason)
    }
}

#[derive(Debug, Clone, PartialEq)]
enum Token {
    /// Property names, operators, keywords, `true`, `false`.
    Word(String),
    Text(String),
    /// A word directly followed by a text: `DateTime'...'`.
    Tagged {
        tag: String,
        text: String,
    },
    Number(f64),
    Open,
    Close,
    Comma,
    End,
}

impl Token {
    fn shown(&self) -> String {
        match self {
            Self::Word(word) => format!("\"{word}\""),
            Self::Text(_) => "a text".to_owned(),
            Self::Tagged { tag, .. } => format!("{tag}'...'"),
            Self::Number(number) => format!("number {number}"),
            Self::Open => "(".to_owned(),
            Self::Close => ")".to_owned(),
            Self::Comma => ",".to_owned(),
            Self::End => "the end".to_owned(),
        }
    }
}

pub(crate) fn parse(text: &str, allowed: &[&str]) -> Result<Node, Problem> {
    let tokens = lex(text)?;
    let mut parser = Parser { tokens, next: 0, allowed, conditions: 0 };
    let node = parser.any(0)?;
    let (at, token) = parser.peek();
    match token {
        Token::End => Ok(node),
        other => Err(Problem::new(*at, format!("expected \"and\", \"or\" or the end, found {}", other.shown()))),
    }
}

fn lex(text: &str) -> Result<Vec<(usize, Token)>, Problem> {
    let characters: Vec<char> = text.chars().take(MAX_LENGTH + 1).collect();
    if characters.len() > MAX_LENGTH {
        return Err(Problem::new(MAX_LENGTH, format!("a filter has at most {MAX_LENGTH} characters; it is longer")));
    }
    let mut tokens = Vec::new();
    let mut at = 0;
    while let Some(&character) = characters.get(at) {
        let start = at;
        let token = match character {
            c if c.is_whitespace() => {
                at += 1;
                continue;
            }
            '(' | ')' | ',' => {
                at += 1;
                match character {
                    '(' => Token::Open,
                    ')' => Token::Close,
                    _ => Token::Comma,
                }
            }
            '\'' => Token::Text(quoted(&characters, &mut at)?),
            c if c.is_ascii_digit() || c == '-' || c == '+' => {
                let word = run(&characters, &mut at, |c| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '+'));
                number(&word).ok_or_else(|| Problem::new(start, format!("{word} is not a number")))?
            }
            c if c.is_ascii_alphabetic() || c == '_' => {
                let word = run(&characters, &mut at, |c| c.is_ascii_alphanumeric() || matches!(c, '_' | '/' | '.'));
                if characters.get(at) == Some(&'\'') {
                    Token::Tagged { tag: word, text: quoted(&characters, &mut at)? }
                } else {
                    Token::Word(word)
                }
            }
            other => return Err(Problem::new(start, format!("unexpected character '{other}'"))),
        };
        tokens.push((start, token));
    }
    tokens.push((characters.len(), Token::End));
    Ok(tokens)
}

fn run(characters: &[char], at: &mut usize, belongs: impl Fn(char) -> bool) -> String {
    let word: String = characters[*at..].iter().take_while(|c| belongs(**c)).collect();
    *at += word.chars().count();
    word
}

fn number(word: &str) -> Option<Token> {
    // What f64 also reads ("inf", "nan") is no number here: it begins with a letter.
    let digits = word.strip_prefix(['-', '+']).unwrap_or(word);
    if !digits.starts_with(|c: char| c.is_ascii_digit()) {
        return None;
    }
    word.parse::<f64>().ok().filter(|value| value.is_finite()).map(Token::Number)
}

fn quoted(characters: &[char], at: &mut usize) -> Result<String, Problem> {
    let start = *at;
    let mut text = String::new();
    let mut here = start + 1;
    loop {
        match (characters.get(here), characters.get(here + 1)) {
            (Some('\''), Some('\'')) => {
                text.push('\'');
                here += 2;
            }
            (Some('\''), _) => {
                *at = here + 1;
                return Ok(text);
            }
            (Some(other), _) => {
                text.push(*other);
                here += 1;
            }
            (None, _) => return Err(Problem::new(start, "the closing quote is missing of the text")),
        }
    }
}

fn instant(text: &str) -> Option<Timestamp> {
    Timestamp::parse_rfc3339(text).or_else(|_| Timestamp::parse_http_date(text)).ok()
}

struct Parser<'a> {
    tokens: Vec<(usize, Token)>,
    next: usize,
    allowed: &'a [&'a str],
    conditions: usize,
}

impl Parser<'_> {
    /// The token to look at; the last one is always [`Token::End`].
    fn peek(&self) -> &(usize, Token) {
        static END: (usize, Token) = (0, Token::End);
        self.tokens.get(self.next).or(self.tokens.last()).unwrap_or(&END)
    }

    fn take(&mut self) -> (usize, Token) {
        let token = self.peek().clone();
        self.next += 1;
        token
    }

    fn take_word(&mut self, word: &str) -> bool {
        let found = matches!(&self.peek().1, Token::Word(found) if found.eq_ignore_ascii_case(word));
        if found {
            self.next += 1;
        }
        found
    }

    fn expect(&mut self, wanted: &Token) -> Result<(), Problem> {
        let (at, token) = self.take();
        if token == *wanted {
            return Ok(());
        }
        Err(Problem::new(at, format!("expected {}, found {}", wanted.shown(), token.shown())))
    }

    fn any(&mut self, depth: usize) -> Result<Node, Problem> {
        let mut nodes = vec![self.all(depth)?];
        while self.take_word("or") {
            nodes.push(self.all(depth)?);
        }
        Ok(one_or(nodes, Node::Any))
    }

    fn all(&mut self, depth: usize) -> Result<Node, Problem> {
        let mut nodes = vec![self.unary(depth)?];
        while self.take_word("and") {
            nodes.push(self.unary(depth)?);
        }
        Ok(one_or(nodes, Node::All))
    }

    fn unary(&mut self, depth: usize) -> Result<Node, Problem> {
        if depth > MAX_DEPTH {
            return Err(Problem::new(self.peek().0, format!("nested deeper than {MAX_DEPTH} levels")));
        }
        if self.take_word("not") {
            return Ok(Node::Not(Box::new(self.unary(depth + 1)?)));
        }
        if self.peek().1 == Token::Open {
            self.next += 1;
            let node = self.any(depth + 1)?;
            self.expect(&Token::Close)?;
            return Ok(node);
        }
        self.conditions += 1;
        if self.conditions > MAX_CONDITIONS {
            return Err(Problem::new(self.peek().0, format!("more than {MAX_CONDITIONS} conditions")));
        }
        let opens = matches!(self.tokens.get(self.next + 1), Some((_, Token::Open)));
        if opens && self.take_word("startswith") {
            return self.starts_with();
        }
        self.comparison()
    }

    fn starts_with(&mut self) -> Result<Node, Problem> {
        self.expect(&Token::Open)?;
        let property = self.property()?;
        self.expect(&Token::Comma)?;
        let (at, token) = self.take();
        let Token::Text(prefix) = token else {
            return Err(Problem::new(at, format!("expected a text in quotes, found {}", token.shown())));
        };
        self.expect(&Token::Close)?;
        Ok(Node::StartsWith { property, lower_prefix: prefix.to_lowercase() })
    }

    fn comparison(&mut self) -> Result<Node, Problem> {
        let property = self.property()?;
        let operator = self.operator()?;
        let literal = self.literal()?;
        Ok(Node::Compare { property, operator, literal })
    }

    fn property(&mut self) -> Result<String, Problem> {
        let (at, token) = self.take();
        let Token::Word(name) = token else {
            return Err(Problem::new(at, format!("expected a property, found {}", token.shown())));
        };
        if self.allowed.contains(&name.as_str()) {
            return Ok(name);
        }
        Err(Problem::new(
            at,
            format!("unknown property \"{name}\"; this list can be filtered by {}", self.allowed.join(", ")),
        ))
    }

    fn operator(&mut self) -> Result<Operator, Problem> {
        let (at, token) = self.take();
        let word = match &token {
            Token::Word(word) => word.to_ascii_lowercase(),
            _ => String::new(),
        };
        Ok(match word.as_str() {
            "eq" => Operator::Eq,
            "ne" => Operator::Ne,
            "gt" => Operator::Gt,
            "ge" => Operator::Ge,
            "lt" => Operator::Lt,
            "le" => Operator::Le,
            _ => {
                let what = format!("expected one of eq, ne, gt, ge, lt, le, found {}", token.shown());
                return Err(Problem::new(at, what));
            }
        })
    }

    fn literal(&mut self) -> Result<Literal, Problem> {
        let (at, token) = self.take();
        match token {
            Token::Text(text) => Ok(Literal::Text { time: instant(&text), lower: text.to_lowercase() }),
            Token::Number(number) => Ok(Literal::Number(number)),
            Token::Word(word) if word.eq_ignore_ascii_case("true") => Ok(Literal::Bool(true)),
            Token::Word(word) if word.eq_ignore_ascii_case("false") => Ok(Literal::Bool(false)),
            Token::Tagged { tag, text } if tag.eq_ignore_ascii_case("datetime") => instant(&text)
                .map(Literal::Time)
                .ok_or_else(|| Problem::new(at, format!("{text:?} is not a date such as 2026-01-31T12:00:00Z"))),
            other => Err(Problem::new(
                at,
                format!("expected a text in quotes, a number, true, false or DateTime'...', found {}", other.shown()),
            )),
        }
    }
}

fn one_or(mut nodes: Vec<Node>, many: fn(Vec<Node>) -> Node) -> Node {
    if nodes.len() == 1
        && let Some(node) = nodes.pop()
    {
        return node;
    }
    many(nodes)
}
