//! As much Markdown as the docs use: fenced blocks with the mark before them,
//! and prose without them.

use std::path::{Path, PathBuf};

/// A document of the repository.
pub(crate) struct Document {
    /// Its path from the root, for messages.
    pub(crate) name: String,
    pub(crate) path: PathBuf,
    pub(crate) text: String,
}

/// A fenced block.
#[derive(Debug)]
pub(crate) struct Block {
    /// The line of its opening fence, from 1.
    pub(crate) line: usize,
    pub(crate) language: String,
    pub(crate) text: String,
    pub(crate) mark: Option<Mark>,
}

/// `<!-- run[ EXIT][: WORDS] -->` before a block.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Mark {
    /// The code it ends with.
    pub(crate) exit: i32,
    /// What its standard output holds.
    pub(crate) words: String,
}

impl Document {
    pub(crate) fn read(root: &Path, name: &str) -> Self {
        let path = root.join(name);
        let text = std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{name}: {e}"));
        Self {
            name: name.to_owned(),
            path,
            text,
        }
    }

    /// Its fenced blocks.
    pub(crate) fn blocks(&self) -> Vec<Block> {
        let mut blocks: Vec<Block> = Vec::new();
        let mut open: Option<Block> = None;
        let mut mark = None;
        for (i, line) in self.text.lines().enumerate() {
            let content = line.trim_start();
            match (&mut open, content.strip_prefix("```")) {
                (None, Some(language)) => {
                    open = Some(Block {
                        line: i + 1,
                        language: language.trim().to_owned(),
                        text: String::new(),
                        mark: mark.take(),
                    });
                }
                (Some(_), Some(_)) => blocks.extend(open.take()),
                (Some(block), None) => {
                    block.text.push_str(line);
                    block.text.push('\n');
                }
                (None, None) => {
                    assert!(
                        mark.is_none(),
                        "{}:{i}: a mark without its block",
                        self.name
                    );
                    mark = Mark::parse(content);
                }
            }
        }
        assert!(open.is_none(), "{}: a block without its end", self.name);
        blocks
    }

    /// Its lines outside of fenced blocks.
    pub(crate) fn prose(&self) -> Vec<&str> {
        let mut inside = false;
        self.text
            .lines()
            .filter(|line| {
                let fence = line.trim_start().starts_with("```");
                inside ^= fence;
                !inside && !fence
            })
            .collect()
    }

    /// Its inline code.
    pub(crate) fn spans(&self) -> Vec<String> {
        let odd = |line: &&str| -> Vec<String> {
            let parts = line.split('`');
            parts.skip(1).step_by(2).map(str::to_owned).collect()
        };
        self.prose().iter().flat_map(odd).collect()
    }

    /// The targets of its links.
    pub(crate) fn links(&self) -> Vec<&str> {
        self.prose()
            .into_iter()
            .flat_map(|line| line.split("](").skip(1))
            .filter_map(|rest| rest.split_once(')').map(|(target, _)| target))
            .collect()
    }

    /// What links to its headings say behind `#`, as GitHub makes it.
    pub(crate) fn anchors(&self) -> Vec<String> {
        self.prose()
            .into_iter()
            .filter(|line| line.starts_with('#'))
            .map(|line| {
                line.trim_start_matches('#')
                    .trim()
                    .to_lowercase()
                    .chars()
                    .filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'))
                    .map(|c| if c == ' ' { '-' } else { c })
                    .collect()
            })
            .collect()
    }

    /// The cells of its table rows, with the heading each stands under.
    pub(crate) fn rows(&self) -> Vec<(String, Vec<String>)> {
        let mut heading = String::new();
        let mut rows = Vec::new();
        for line in self.prose() {
            if let Some(text) = line.strip_prefix('#') {
                heading = text.trim_start_matches('#').trim().to_owned();
            }
            if let Some(row) = line.strip_prefix("| ") {
                let row = row.replace("\\|", "\u{0}");
                let cells = row.trim_end().trim_end_matches('|').split(" | ");
                let cells = cells
                    .map(|cell| cell.trim().replace('\u{0}', "|"))
                    .collect();
                rows.push((heading.clone(), cells));
            }
        }
        rows
    }
}

impl Mark {
    fn parse(line: &str) -> Option<Self> {
        let inner = line
            .strip_prefix("<!-- run")?
            .strip_suffix("-->")?
            .trim_end();
        let (exit, words) = inner.split_once(':').unwrap_or((inner, ""));
        let exit = match exit.trim() {
            "" => 0,
            code => code.parse().unwrap_or_else(|e| panic!("{line}: {e}")),
        };
        Some(Self {
            exit,
            words: words.trim().to_owned(),
        })
    }
}
