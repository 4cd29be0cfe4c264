//! `topic list`.

use anyhow::Context as _;
use forebay_client::Admin;

use super::view::TopicSummary;
use crate::output::{FormatArgs, grouped, table};

/// How to list.
#[derive(Debug, clap::Args)]
pub struct ListArgs {
    #[command(flatten)]
    pub format: FormatArgs,
}

/// Lists all topics by name.
pub async fn run(args: ListArgs, admin: &Admin) -> anyhow::Result<()> {
    let topics = admin.list_topics().await.context("cannot list topics")?;
    let topics: Vec<TopicSummary> = topics.into_iter().map(TopicSummary::from).collect();
    args.format.print(&topics, |topics| render(topics))
}

fn render(topics: &[TopicSummary]) -> String {
    if topics.is_empty() {
        return "no topics; make one with `forebay topic create NAME --partitions N`".to_owned();
    }
    let rows = topics.iter().map(|topic| {
        vec![
            topic.name.clone(),
            grouped(topic.partitions.into()),
            topic.id.clone(),
        ]
    });
    table(&["TOPIC", "PARTITIONS", "ID"], &[1], rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn topics_are_rows() {
        let topic = TopicSummary {
            name: "clicks".to_owned(),
            id: "x".to_owned(),
            partitions: 1000,
        };
        assert_eq!(render(&[topic]), "TOPIC   PARTITIONS  ID\nclicks       1,000  x");
        assert!(render(&[]).starts_with("no topics"));
    }
}
