//! Images: references, pulling, EROFS layers, the image store.
