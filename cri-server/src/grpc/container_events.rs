//! GetContainerEvents: what happens from now on, until the client goes or the daemon stops. A client that does not keep up is
//! told so and lists anew.

use std::sync::Arc;

use futures_util::{StreamExt as _, future, stream};
use proto::cri::v1 as cri;
use tokio::sync::broadcast::{Receiver, error::RecvError};
use tonic::Status;

use super::{convert, pages::Pages};
use crate::sandbox::{Event, EventKind, Node, RequestError};

pub(super) async fn handle(
    node: Arc<Node>,
    _: cri::GetEventsRequest,
) -> Result<Pages<cri::ContainerEventResponse>, RequestError> {
    let stop = node.stop.clone().cancelled_owned();
    let events = stream::unfold(Some(node.events.listen()), next);
    Ok(Box::pin(events.take_until(stop)))
}

/// After an error the stream ends.
async fn next(
    listening: Option<Receiver<Arc<Event>>>,
) -> Option<(
    Result<cri::ContainerEventResponse, Status>,
    Option<Receiver<Arc<Event>>>,
)> {
    let mut events = listening?;
    match events.recv().await {
        Ok(event) => Some((Ok(response(&event)), Some(events))),
        Err(RecvError::Lagged(lost)) => {
            let text = format!("{lost} events were not fetched in time and are lost: list, and listen again");
            Some((Err(Status::resource_exhausted(text)), None))
        }
        // The sender lives as long as the node.
        Err(RecvError::Closed) => future::pending().await,
    }
}

/// kubelet's evented PLEG takes the pod from the status, also of what is deleted.
fn response(event: &Event) -> cri::ContainerEventResponse {
    let kind = match event.kind {
        EventKind::Created => cri::ContainerEventType::ContainerCreatedEvent,
        EventKind::Started => cri::ContainerEventType::ContainerStartedEvent,
        EventKind::Stopped => cri::ContainerEventType::ContainerStoppedEvent,
        EventKind::Deleted => cri::ContainerEventType::ContainerDeletedEvent,
    };
    cri::ContainerEventResponse {
        container_id: event.id.clone(),
        container_event_type: kind.into(),
        created_at: event.at,
        pod_sandbox_status: Some(convert::sandbox_status(&event.sandbox)),
        containers_statuses: convert::container_statuses(&event.sandbox),
    }
}

#[cfg(test)]
mod tests {
    use tokio::sync::broadcast;
    use tonic::Code;

    use super::*;
    use crate::stats::fixture;

    fn event(id: &str) -> Arc<Event> {
        Arc::new(Event {
            id: id.to_owned(),
            kind: EventKind::Deleted,
            at: 7,
            sandbox: fixture::measured().view,
        })
    }

    #[tokio::test]
    async fn an_event_has_the_pod_and_its_containers() {
        let (sender, listening) = broadcast::channel(2);
        sender.send(event("gone")).unwrap();
        let (told, _) = next(Some(listening)).await.unwrap();
        let told = told.unwrap();
        assert_eq!((told.container_id.as_str(), told.created_at), ("gone", 7));
        assert_eq!(
            told.container_event_type(),
            cri::ContainerEventType::ContainerDeletedEvent
        );
        assert_eq!(told.pod_sandbox_status.unwrap().id, "pod");
        assert_eq!(told.containers_statuses[0].id, "c1");
    }

    #[tokio::test]
    async fn a_client_that_does_not_keep_up_is_told_so_and_the_stream_ends() {
        let (sender, listening) = broadcast::channel(2);
        for id in ["a", "b", "c"] {
            sender.send(event(id)).unwrap();
        }
        let (told, rest) = next(Some(listening)).await.unwrap();
        assert_eq!(told.unwrap_err().code(), Code::ResourceExhausted);
        assert!(next(rest).await.is_none());
    }
}
