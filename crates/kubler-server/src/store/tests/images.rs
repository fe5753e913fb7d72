//! From an image to the environments that were asked to run it.

use kubler_core::artifact::ImageQuery;

use super::*;

async fn with_image(shelf: &Shelf, query: ImageQuery) -> Vec<EnvironmentId> {
    let search = Search {
        image: Some(query),
        ..Search::default()
    };
    let found = shelf.store.search(&search, None).await.unwrap();
    found.iter().map(|environment| environment.id).collect()
}

async fn found(shelf: &Shelf, image: &str) -> Vec<EnvironmentId> {
    with_image(shelf, ImageQuery::parse(image).unwrap().exactly()).await
}

fn of(image: &str) -> Vec<String> {
    vec![image.to_owned()]
}

#[tokio::test]
async fn an_image_is_found_from_when_it_was_named_and_not_when_it_was_refused() {
    let shelf = Shelf::new().await;
    let environment = environment(1, &job(1), "main");
    shelf.create(&environment).await.unwrap();
    let (id, store) = (environment.id, &shelf.store);
    for image in ["busybox", "ghcr.io/acme/web:v1", "not a name"] {
        store.images_named(id, &of(image), at(1)).await.unwrap();
        store.images_named(id, &of(image), at(2)).await.unwrap();
    }
    assert_eq!(
        found(&shelf, "busybox:latest").await,
        [id],
        "the answer is not known"
    );
    store
        .images_answered(id, &of("busybox"), false, at(3))
        .await
        .unwrap();
    assert!(found(&shelf, "busybox").await.is_empty());
    store
        .images_answered(id, &of("ghcr.io/acme/web:v1"), true, at(3))
        .await
        .unwrap();
    store
        .images_answered(id, &of("ghcr.io/acme/web:v1"), false, at(4))
        .await
        .unwrap();
    assert_eq!(
        found(&shelf, "ghcr.io/acme/web").await,
        [id],
        "another one was accepted"
    );
    // A refusal of the same image may be noted between the two of an acceptance.
    store
        .images_answered(id, &of("busybox"), true, at(5))
        .await
        .unwrap();
    assert_eq!(found(&shelf, "docker.io/library/busybox").await, [id]);
    let all = store
        .images(std::slice::from_ref(&environment))
        .await
        .unwrap();
    assert_eq!(
        all[&id].named,
        ["ghcr.io/acme/web:v1", "not a name", "busybox"]
    );
    assert!(!all[&id].truncated);
}

#[tokio::test]
async fn the_end_of_a_name_is_enough_where_no_registry_is_given_and_no_part_of_a_word_is() {
    let shelf = Shelf::new().await;
    let environment = environment(1, &job(1), "main");
    shelf.create(&environment).await.unwrap();
    let named = of("ghcr.io/acme/team/web:v1");
    shelf
        .store
        .images_named(environment.id, &named, at(1))
        .await
        .unwrap();
    let anywhere = async |text: &str| {
        let query = ImageQuery::parse(text).unwrap().anywhere().unwrap();
        with_image(&shelf, query).await.len()
    };
    for (text, count) in [
        ("web", 1),
        ("team/web:v1", 1),
        ("eb", 0),
        ("am/web", 0),
        ("web:v2", 0),
        ("team", 0),
    ] {
        assert_eq!(anywhere(text).await, count, "{text}");
    }
}

#[tokio::test]
async fn so_many_images_of_one_environment_are_kept_and_they_go_with_it() {
    let shelf = Shelf::new().await;
    let environment = environment(1, &job(1), "main");
    shelf.create(&environment).await.unwrap();
    let many: Vec<_> = (0..=IMAGES_PER_ENVIRONMENT_MAX)
        .map(|nth| format!("it:{nth}"))
        .collect();
    shelf
        .store
        .images_named(environment.id, &many, at(1))
        .await
        .unwrap();
    let all = shelf
        .store
        .images(std::slice::from_ref(&environment))
        .await
        .unwrap();
    let images = &all[&environment.id];
    assert_eq!(
        images.named.len(),
        usize::try_from(IMAGES_PER_ENVIRONMENT_MAX).unwrap()
    );
    assert!(images.truncated);
    let as_many_as_are_found_at_most = vec![environment.clone(); SEARCH_MAX];
    let told = shelf
        .store
        .images(&as_many_as_are_found_at_most)
        .await
        .unwrap();
    assert!(told[&environment.id].named.len() < 20 && told[&environment.id].truncated);
    shelf.gone(&environment, at(10)).await;
    assert_eq!(
        found(&shelf, "it:1").await,
        [environment.id],
        "tombstones are found"
    );
    shelf.store.forget(at(11 + 7 * 24 * HOUR)).await.unwrap();
    let sql = "SELECT count(*) FROM images";
    let left: i64 = sqlx::query(sql)
        .fetch_one(&shelf.store.pool)
        .await
        .unwrap()
        .get(0);
    assert_eq!(left, 0);
}
