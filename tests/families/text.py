"""Encoders of text, and encoder-decoders: tiny configurations."""

from __future__ import annotations

from .row import PAIR, TEXT, Row

ROWS: dict[str, Row] = {
    # encoders of text
    "albert": Row("AlbertForMaskedLM", TEXT, {"embedding_size": 20}),
    "bert": Row("BertForMaskedLM", TEXT),
    "big_bird": Row("BigBirdForMaskedLM", TEXT, {"attention_type": "original_full"}),
    "bros": Row("BrosForTokenClassification", TEXT + ",bbox=float32[3,5,4]", {"hidden_size": 64}),
    "camembert": Row("CamembertForSequenceClassification", TEXT),
    "canine": Row("CanineForSequenceClassification", "input_ids=int64[3,16]", {"local_transformer_stride": 8}),
    "convbert": Row("ConvBertForMaskedLM", TEXT, {"embedding_size": 20, "head_ratio": 2}),
    "data2vec-text": Row("Data2VecTextForMaskedLM", TEXT),
    "deberta": Row("DebertaForMaskedLM", TEXT, {"relative_attention": True, "pos_att_type": ["c2p", "p2c"]}),
    "deberta-v2": Row(
        "DebertaV2ForMaskedLM",
        TEXT,
        {"relative_attention": True, "pos_att_type": ["c2p", "p2c"], "position_buckets": 8, "share_att_key": True},
    ),
    "distilbert": Row("DistilBertForMaskedLM", TEXT),
    "dpr": Row("DPRReader", TEXT, {"projection_dim": 0}, "start_logits"),
    "electra": Row("ElectraForMaskedLM", TEXT, {"embedding_size": 20}),
    "ernie": Row("ErnieForMaskedLM", TEXT),
    "esm": Row("EsmForMaskedLM", TEXT, {"position_embedding_type": "rotary", "mask_token_id": 3}),
    "eurobert": Row("EuroBertForMaskedLM", TEXT),
    "flaubert": Row("FlaubertWithLMHeadModel", TEXT, {"emb_dim": 48}),
    "fnet": Row("FNetForMaskedLM", TEXT),
    "funnel": Row("FunnelForMaskedLM", "input_ids=int64[3,8]", {"block_sizes": [1, 1], "num_decoder_layers": 1}),
    "ibert": Row("IBertForMaskedLM", TEXT),
    "layoutlm": Row("LayoutLMForMaskedLM", TEXT),
    "led": Row(
        "LEDForConditionalGeneration", "input_ids=int64[3,8],decoder_input_ids=int64[3,7]", {"attention_window": 4}
    ),
    "longformer": Row("LongformerForMaskedLM", "input_ids=int64[3,8]", {"attention_window": 4}),
    "luke": Row("LukeForMaskedLM", TEXT, {"entity_vocab_size": 20, "entity_emb_size": 12}),
    "megatron-bert": Row("MegatronBertForMaskedLM", TEXT),
    "mobilebert": Row(
        "MobileBertForMaskedLM", TEXT, {"embedding_size": 20, "intra_bottleneck_size": 24, "true_hidden_size": 24}
    ),
    "modernbert": Row("ModernBertForMaskedLM", TEXT, {"global_attn_every_n_layers": 2, "local_attention": 4}),
    "mpnet": Row("MPNetForMaskedLM", TEXT),
    "nomic_bert": Row("NomicBertForMaskedLM", TEXT),
    "nystromformer": Row(
        "NystromformerForMaskedLM", "input_ids=int64[3,8]", {"num_landmarks": 8, "segment_means_seq_len": 8}
    ),
    "rembert": Row("RemBertForMaskedLM", TEXT, {"input_embedding_size": 20, "output_embedding_size": 28}),
    "roberta": Row("RobertaForMaskedLM", TEXT),
    "roberta-prelayernorm": Row("RobertaPreLayerNormForMaskedLM", TEXT),
    "roformer": Row("RoFormerForMaskedLM", TEXT, {"embedding_size": 20}),
    "splinter": Row("SplinterForQuestionAnswering", TEXT, output="start_logits"),
    "squeezebert": Row(
        "SqueezeBertForMaskedLM",
        TEXT,
        {
            "embedding_size": 48,
            **dict.fromkeys(("q_groups", "k_groups", "v_groups", "intermediate_groups", "output_groups"), 2),
        },
    ),
    "xlm": Row("XLMForSequenceClassification", TEXT, {"emb_dim": 48}),
    "xlm-roberta": Row("XLMRobertaForMaskedLM", TEXT),
    # encoder-decoders
    "bart": Row("BartForConditionalGeneration", PAIR),
    "bigbird_pegasus": Row("BigBirdPegasusForConditionalGeneration", PAIR, {"attention_type": "original_full"}),
    "blenderbot": Row("BlenderbotForConditionalGeneration", PAIR),
    "blenderbot-small": Row("BlenderbotSmallForConditionalGeneration", PAIR),
    "fsmt": Row(
        "FSMTForConditionalGeneration", PAIR, {"langs": ["a", "b"], "src_vocab_size": 131, "tgt_vocab_size": 131}
    ),
    "longt5": Row(
        "LongT5ForConditionalGeneration",
        PAIR + ",attention_mask=float32[3,5]",
        {"encoder_attention_type": "local", "local_radius": 3},
    ),
    "m2m_100": Row("M2M100ForConditionalGeneration", PAIR),
    "marian": Row("MarianMTModel", PAIR),
    "mbart": Row("MBartForConditionalGeneration", PAIR),
    "moonshine": Row(
        "MoonshineForConditionalGeneration",
        "input_values=float32[2,1024],decoder_input_ids=int64[2,7]",
        {"pad_head_dim_to_multiple_of": None},
    ),
    "mt5": Row("MT5ForConditionalGeneration", PAIR),
    "nllb-moe": Row("NllbMoeForConditionalGeneration", PAIR, {"encoder_sparse_step": 2, "decoder_sparse_step": 2}),
    "pegasus": Row("PegasusForConditionalGeneration", PAIR),
    "pegasus_x": Row(
        "PegasusXForConditionalGeneration",
        "input_ids=int64[3,8],decoder_input_ids=int64[3,7]",
        {"block_size": 4, "num_global_tokens": 3},
    ),
    "plbart": Row("PLBartForConditionalGeneration", PAIR),
    "speech_to_text": Row(
        "Speech2TextForConditionalGeneration",
        "input_features=float32[2,20,10],decoder_input_ids=int64[2,7]",
        {"input_feat_per_channel": 10, "conv_channels": 24, "max_source_positions": 64, "max_target_positions": 64},
    ),
    "switch_transformers": Row(
        "SwitchTransformersForConditionalGeneration",
        PAIR + ",attention_mask=bool[3,5],decoder_attention_mask=bool[3,7]",
        {"num_sparse_encoder_layers": 1, "num_sparse_decoder_layers": 1},
    ),
    "t5": Row("T5ForConditionalGeneration", PAIR, {"decoder_start_token_id": 2}),
    "t5gemma": Row(
        "T5GemmaForConditionalGeneration", PAIR, {"encoder": {}, "decoder": {"cross_attention_hidden_size": 48}}
    ),
    "umt5": Row("UMT5ForConditionalGeneration", PAIR),
    "whisper": Row(
        "WhisperForConditionalGeneration",
        "input_features=float32[2,10,28],decoder_input_ids=int64[2,7]",
        {"num_mel_bins": 10, "max_source_positions": 14, "max_target_positions": 32},
    ),
}
