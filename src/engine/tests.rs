//! Recorded and rebuilt pages of every engine, and what they are to give (`tests/pages/README.md` says where from).

use super::*;
use crate::wire::beacon::Load;

macro_rules! page {
    ($name:literal) => {
        include_bytes!(concat!("../../tests/pages/", $name, ".txt")).as_slice()
    };
}

fn read(engine: Engine, page: &[u8]) -> Reading {
    Reader::new(engine, CustomNames::default()).read(page).unwrap().clone()
}

fn fails(engine: Engine, page: &[u8]) -> PageFault {
    Reader::new(engine, CustomNames::default()).read(page).unwrap_err()
}

fn names(texts: &[&str]) -> Vec<String> {
    texts.iter().map(|text| (*text).to_owned()).collect()
}

#[test]
fn vllm_pages_are_read() {
    let idle = Reading {
        kv_usage: Some(0.0),
        kv_blocks: Some(160),
        kv_block_tokens: Some(32),
        prefix_tokens_queried: Some(0),
        prefix_tokens_hit: Some(0),
        started_unix_us: Some(1_795_635_579_440_000),
        models: names(&["tiny"]),
        ..Reading::new(Engine::Vllm)
    };
    assert_eq!(read(Engine::Vllm, page!("vllm-idle")), idle);
    let busy = Reading {
        running: 2,
        waiting: 6,
        kv_usage: Some(0.220_125_78),
        prefix_tokens_queried: Some(1_923),
        prefix_tokens_hit: Some(384),
        adapters_loaded: Some(names(&["tiny-lora"])),
        adapters_waiting: Some(names(&["tiny-lora"])),
        ..idle
    };
    assert_eq!(read(Engine::Vllm, page!("vllm-busy")), busy);
    // The newest of the adapters' series counts, and it names none.
    let lora = read(Engine::Vllm, page!("vllm-busy-lora"));
    assert_eq!((lora.adapters_loaded.as_deref(), lora.running, lora.waiting), (Some(&[][..]), 1, 2));
    assert_eq!(lora.facts().adapters_loaded, names(&[""]));
}

#[test]
fn of_several_vllm_engines_in_one_server_those_without_a_step_count_as_idle() {
    let idle = read(Engine::Auto, page!("vllm-two-engines-idle"));
    assert_eq!((idle.engine, idle.running, idle.waiting, idle.kv_usage), (Engine::Vllm, 0, 0, None));
    let busy = read(Engine::Vllm, page!("vllm-two-engines-busy"));
    assert!(busy.running > 0 && busy.kv_usage.is_some_and(|share| share <= 1.0), "{busy:?}");
}

#[test]
fn old_names_of_vllm_count_only_where_the_new_ones_are_missing() {
    let old = b"vllm:num_requests_running{model_name=\"a\"} 1\nvllm:num_requests_waiting{model_name=\"a\"} 2\n\
        vllm:gpu_cache_usage_perc{model_name=\"a\"} 0.5\nvllm:gpu_prefix_cache_queries_total 10\n\
        vllm:gpu_prefix_cache_hits_total 4\n";
    let reading = read(Engine::Auto, old);
    assert_eq!((reading.kv_usage, reading.prefix_tokens_queried), (Some(0.5), Some(10)));
    assert_eq!((reading.prefix_tokens_hit, reading.started_unix_us, reading.kv_blocks), (Some(4), None, None));
    let both = [&old[..], b"vllm:kv_cache_usage_perc 0.25\nvllm:prefix_cache_queries_total 100\n"].concat();
    let reading = read(Engine::Auto, &both);
    assert_eq!((reading.kv_usage, reading.prefix_tokens_queried), (Some(0.25), Some(100)));
}

#[test]
fn engines_of_one_vllm_page_are_summed_up_and_usage_is_their_mean() {
    let mut page = String::new();
    for (engine, running, usage) in [(0, 3, 0.2), (1, 4, 0.6)] {
        page += &format!(
            "vllm:num_requests_running{{engine=\"{engine}\",model_name=\"m\"}} {running}\n\
             vllm:num_requests_waiting{{engine=\"{engine}\",model_name=\"m\"}} 1\n\
             vllm:kv_cache_usage_perc{{engine=\"{engine}\",model_name=\"m\"}} {usage}\n\
             vllm:engine_sleep_state{{engine=\"{engine}\",sleep_state=\"awake\"}} {}\n\
             vllm:cache_config_info{{block_size=\"16\",engine=\"{engine}\",num_gpu_blocks=\"1000\"}} 1\n",
            1 - engine
        );
    }
    let reading = read(Engine::Vllm, page.as_bytes());
    assert_eq!((reading.running, reading.waiting, reading.kv_blocks), (7, 2, Some(2_000)));
    assert_eq!((reading.kv_usage, reading.kv_block_tokens), (Some(0.4), Some(16)));
    assert!(!reading.is_awake && !reading.load().ready, "one of them sleeps");
}

#[test]
fn sglang_pages_are_read() {
    let busy = Reading {
        running: 162,
        waiting: 2_826,
        kv_usage: Some(0.28),
        kv_blocks: Some(27_648),
        kv_block_tokens: Some(16),
        blocks_evicted: Some(2_000),
        prefix_tokens_queried: Some(8_128_902),
        prefix_tokens_hit: Some(61_028),
        models: names(&["meta-llama/Llama-3.1-8B-Instruct"]),
        ..Reading::new(Engine::Sglang)
    };
    assert_eq!(read(Engine::Sglang, page!("sglang-busy")), busy);
    // Data-parallel ranks add up; what tensor-parallel ranks say over does not.
    let ranks = read(Engine::Sglang, page!("sglang-ranks"));
    assert_eq!((ranks.running, ranks.waiting, ranks.kv_usage), (12, 3, Some(0.5)));
    assert_eq!(read(Engine::Auto, page!("sglang-idle")), Reading::new(Engine::Sglang));
    // Priorities stand beside their total.
    let priorities = b"sglang:num_running_reqs{priority=\"\",tp_rank=\"0\"} 14\n\
        sglang:num_running_reqs{priority=\"-1\",tp_rank=\"0\"} 4\nsglang:num_running_reqs{priority=\"0\"} 10\n";
    assert_eq!(read(Engine::Sglang, priorities).running, 14);
    let tokens = b"sglang:num_running_reqs 0\nsglang:max_total_num_tokens 4096\nsglang:evicted_tokens_total 7\n";
    let reading = read(Engine::Sglang, tokens);
    assert_eq!((reading.kv_blocks, reading.kv_block_tokens, reading.blocks_evicted), (Some(4_096), Some(1), Some(7)));
}

#[test]
fn trtllm_pages_are_read() {
    let busy = Reading {
        running: 73,
        waiting: 4,
        slots: Some(2_048),
        kv_usage: Some(0.4375),
        kv_blocks: Some(5_360),
        kv_block_tokens: Some(32),
        prefix_tokens_queried: Some(68_000),
        prefix_tokens_hit: Some(61_600),
        started_unix_us: Some(1_750_000_000_250_000),
        models: names(&["nemotron-nano-3"]),
        ..Reading::new(Engine::Trtllm)
    };
    assert_eq!(read(Engine::Trtllm, page!("trtllm-busy")), busy);
    assert_eq!(read(Engine::Auto, page!("trtllm-idle")).running, 0);
    let blocks = b"trtllm_kv_cache_reused_blocks_total 3\ntrtllm_kv_cache_missed_blocks_total 1\n\
        trtllm_kv_cache_tokens_per_block 32\n";
    let reading = read(Engine::Trtllm, blocks);
    assert_eq!((reading.prefix_tokens_queried, reading.prefix_tokens_hit), (Some(128), Some(96)));
}

#[test]
fn triton_pages_are_read() {
    let busy = Reading {
        running: 64,
        waiting: 9,
        slots: Some(512),
        kv_usage: Some(0.625),
        kv_blocks: Some(6_400),
        kv_block_tokens: Some(64),
        models: names(&["tensorrt_llm"]),
        ..Reading::new(Engine::Triton)
    };
    assert_eq!(read(Engine::Triton, page!("triton-busy")), busy);
    let idle = read(Engine::Auto, page!("triton-idle"));
    assert_eq!((idle.running, idle.waiting, idle.kv_blocks), (1, 0, Some(6_239)));
    assert!(idle.kv_usage.is_some_and(|usage| (usage - 1.0 / 6_239.0).abs() < 1e-6));
}

#[test]
fn llamacpp_pages_are_read() {
    let busy = Reading {
        running: 2,
        waiting: 1,
        prefix_tokens_queried: Some(14),
        prefix_tokens_hit: Some(0),
        ..Reading::new(Engine::LlamaCpp)
    };
    assert_eq!(read(Engine::LlamaCpp, page!("llamacpp-busy")), busy);
    assert_eq!(
        read(Engine::Auto, page!("llamacpp-idle")).load(),
        Load { ready: true, prefix_tokens_queried: Some(0), prefix_tokens_hit: Some(0), ..Load::default() }
    );
}

#[test]
fn a_custom_engine_is_read_by_its_users_names() {
    let mut custom = CustomNames::default();
    for (field, metric) in [
        ("running", "jobs{state=\"run\"}"),
        ("waiting", "jobs{state=queued}"),
        ("kv_usage", "cache_share"),
        ("prefill_tokens", "tokens_to_do"),
        ("started", "born"),
    ] {
        custom.map(field, metric).unwrap();
    }
    let page = b"jobs{state=\"run\"} 3\njobs{state=\"queued\"} 4\njobs{state=\"done\"} 5\ncache_share 1.5\n\
        tokens_to_do 123456\nborn 1.7e9 1700000000\n";
    let mut reader = Reader::new(Engine::Custom, custom);
    let reading = reader.read(page).unwrap().clone();
    assert_eq!((reading.running, reading.waiting, reading.kv_usage), (3, 4, Some(1.0)));
    assert_eq!((reading.prefill_tokens, reading.started_unix_us), (Some(123_456), Some(1_700_000_000_000_000)));
    let fault = reader.read(b"jobs{state=\"run\"} 3\n").unwrap_err();
    assert_eq!(fault.to_string(), "the page lacks `jobs{state=\"queued\"}`; it does not look like custom's");
    let fault = fails(Engine::Custom, b"jobs 1\n");
    assert!(fault.to_string().starts_with("the page lacks a mapping of running and a mapping of waiting"), "{fault}");
}

#[test]
fn every_engine_is_recognised() {
    for (page, engine) in [
        (page!("vllm-idle"), Engine::Vllm),
        (page!("sglang-idle"), Engine::Sglang),
        (page!("trtllm-idle"), Engine::Trtllm),
        (page!("triton-idle"), Engine::Triton),
        (page!("llamacpp-idle"), Engine::LlamaCpp),
    ] {
        assert_eq!(recognise(page), Some(engine));
        assert_eq!(read(Engine::Auto, page).engine, engine);
        assert_eq!(Engine::named(engine.as_str()), Some(engine));
    }
    // `auto` follows when another engine takes the address.
    let mut reader = Reader::new(Engine::Auto, CustomNames::default());
    assert_eq!(reader.read(page!("vllm-idle")).unwrap().engine, Engine::Vllm);
    assert!(reader.read(page!("llamacpp-idle")).is_err());
    assert_eq!(reader.read(page!("llamacpp-idle")).unwrap().engine, Engine::LlamaCpp);
}

#[test]
fn pages_that_give_no_reading_say_why() {
    let said = |engine, page: &[u8]| fails(engine, page).to_string();
    assert_eq!(
        said(Engine::Vllm, page!("sglang-busy")),
        "the page lacks `vllm:num_requests_running` and `vllm:num_requests_waiting`; it looks like sglang's, not vllm's"
    );
    assert_eq!(
        said(Engine::LlamaCpp, b"llamacpp:requests_deferred 1\n"),
        "the page lacks `llamacpp:requests_processing`; it is llamacpp's, of a version that names them otherwise?"
    );
    assert_eq!(fails(Engine::Auto, b"up 1\n"), PageFault::Unknown);
    assert_eq!(fails(Engine::Trtllm, b"[{\"iter\": 1}]"), PageFault::Json);
    assert_eq!(fails(Engine::Auto, b"{}"), PageFault::Json);
    assert_eq!(fails(Engine::Auto, b"<html>\n<body>\n"), PageFault::NotText { lines: 2 });
    assert_eq!(said(Engine::Sglang, b"# HELP x y\n"), "the page is empty; start SGLang with --enable-metrics");
    assert_eq!(fails(Engine::Vllm, &vec![b'#'; PAGE_BYTES_MAX + 1]), PageFault::TooLong);
}

#[test]
fn broken_lines_are_counted_and_the_rest_is_read() {
    let page = b"garbage\nllamacpp:requests_processing 2\n{}\nllamacpp:requests_deferred{ 9\n\
        llamacpp:requests_deferred NaN\nllamacpp:requests_deferred 1\nllamacpp:kv_cache_usage_ratio NaN\n";
    let reading = read(Engine::LlamaCpp, page);
    assert_eq!((reading.running, reading.waiting, reading.kv_usage, reading.lines_broken), (2, 1, None, 3));
}

#[test]
fn absurd_values_saturate() {
    let page = b"llamacpp:requests_processing 1e300\nllamacpp:requests_deferred -4\nllamacpp:requests_deferred 2\n\
        llamacpp:prompt_tokens_total 1e30\nllamacpp:prompt_tokens_cached_total +Inf\nprocess_start_time_seconds 12\n";
    let reading = read(Engine::LlamaCpp, page);
    assert_eq!((reading.running, reading.waiting, reading.started_unix_us), (u32::MAX, 2, None));
    assert_eq!((reading.prefix_tokens_queried, reading.prefix_tokens_hit), (None, None));
}

#[test]
fn any_bytes_are_read_without_panic() {
    let mut readers: Vec<Reader> =
        Engine::ALL.into_iter().map(|engine| Reader::new(engine, CustomNames::default())).collect();
    let pages = [page!("vllm-busy"), page!("sglang-ranks"), page!("triton-busy"), page!("llamacpp-busy")];
    bolero::check!().with_type::<(u8, Vec<(u16, u8)>, Vec<u8>)>().for_each(|(which, changes, tail)| {
        // Half of the inputs are real pages with some bytes changed: those get further.
        let mut page = if which % 2 == 0 { Vec::new() } else { pages[usize::from(*which / 2) % 4].to_vec() };
        for (at, byte) in changes {
            let length = page.len().max(1);
            if let Some(cell) = page.get_mut(usize::from(*at) % length) {
                *cell = *byte;
            }
        }
        page.extend_from_slice(tail);
        for reader in &mut readers {
            if let Ok(reading) = reader.read(&page) {
                let load = reading.load();
                assert!(load.kv_usage.is_none_or(|usage| (0.0..=1.0).contains(&usage)));
            }
        }
    });
}
