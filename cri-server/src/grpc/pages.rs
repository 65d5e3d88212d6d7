//! Lists as streams: as many items in a message as are well below what a message may be, at least one, each once.

use std::pin::Pin;

use futures_util::{Stream, stream};
use prost::Message;
use tonic::Status;

/// A message is sent when it has so many bytes.
const PAGE_BYTES: usize = 1024 * 1024;

/// What a streaming call answers.
pub(super) type Pages<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// The items in messages that `wrap` makes.
pub(super) fn pages<T, M>(
    items: impl IntoIterator<Item = T, IntoIter: Send + 'static>,
    wrap: fn(Vec<T>) -> M,
) -> Pages<M>
where
    T: Message + 'static,
    M: 'static,
{
    let mut items = items.into_iter();
    let messages = std::iter::from_fn(move || page(&mut items).map(|page| Ok(wrap(page))));
    Box::pin(stream::iter(messages))
}

/// The next items; `None` when there are no more.
fn page<T: Message>(items: &mut impl Iterator<Item = T>) -> Option<Vec<T>> {
    let (mut page, mut bytes) = (Vec::new(), 0_usize);
    while bytes < PAGE_BYTES
        && let Some(item) = items.next()
    {
        bytes = bytes.saturating_add(item.encoded_len());
        page.push(item);
    }
    (!page.is_empty()).then_some(page)
}

#[cfg(test)]
mod tests {
    use futures_util::StreamExt as _;
    use proto::cri::v1 as cri;

    use super::*;

    async fn sizes(items: Vec<cri::Image>) -> Vec<usize> {
        pages(items, |images| cri::StreamImagesResponse { images })
            .map(|page| page.unwrap().images.len())
            .collect()
            .await
    }

    fn image(bytes: usize) -> cri::Image {
        cri::Image {
            id: "x".repeat(bytes),
            ..cri::Image::default()
        }
    }

    #[tokio::test]
    async fn a_page_has_at_least_one_item_and_is_not_large() {
        assert_eq!(sizes(Vec::new()).await, [] as [usize; 0]);
        assert_eq!(sizes(vec![image(2 * PAGE_BYTES), image(1)]).await, [1, 1]);
        let many = (0..10).map(|_| image(PAGE_BYTES / 4)).collect();
        assert_eq!(sizes(many).await, [4, 4, 2]);
    }
}
