//! ImageService: one line per RPC.

use proto::cri::v1::{self as cri, image_service_server::ImageService};
use tonic::{Request, Response, Status};

use super::{edge::Edge, image_fs_info, image_list, image_pull, image_remove, image_status, pages::Pages};

#[tonic::async_trait]
impl ImageService for Edge {
    type StreamImagesStream = Pages<cri::StreamImagesResponse>;

    async fn pull_image(
        &self,
        request: Request<cri::PullImageRequest>,
    ) -> Result<Response<cri::PullImageResponse>, Status> {
        self.call("PullImage", request, image_pull::handle).await
    }

    async fn image_status(
        &self,
        request: Request<cri::ImageStatusRequest>,
    ) -> Result<Response<cri::ImageStatusResponse>, Status> {
        self.call("ImageStatus", request, image_status::handle).await
    }

    async fn list_images(
        &self,
        request: Request<cri::ListImagesRequest>,
    ) -> Result<Response<cri::ListImagesResponse>, Status> {
        self.call("ListImages", request, image_list::handle).await
    }

    async fn stream_images(
        &self,
        request: Request<cri::StreamImagesRequest>,
    ) -> Result<Response<Self::StreamImagesStream>, Status> {
        self.call("StreamImages", request, image_list::stream).await
    }

    async fn remove_image(
        &self,
        request: Request<cri::RemoveImageRequest>,
    ) -> Result<Response<cri::RemoveImageResponse>, Status> {
        self.call("RemoveImage", request, image_remove::handle).await
    }

    async fn image_fs_info(
        &self,
        request: Request<cri::ImageFsInfoRequest>,
    ) -> Result<Response<cri::ImageFsInfoResponse>, Status> {
        self.call("ImageFsInfo", request, image_fs_info::handle).await
    }
}
