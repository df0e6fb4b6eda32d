"""Audio and time series: tiny configurations."""

from __future__ import annotations

from typing import Any

from .row import Row

WAVE = "input_values=float32[2,400]"
SPEECH: dict[str, Any] = {
    "conv_dim": [24, 20], "conv_kernel": [8, 4], "conv_stride": [4, 2], "num_conv_pos_embeddings": 8,
    "num_conv_pos_embedding_groups": 4,
}  # fmt: skip

ROWS: dict[str, Row] = {
    # audio
    "audio-spectrogram-transformer": Row(
        "ASTForAudioClassification",
        "input_values=float32[2,24,16]",
        {"max_length": 24, "num_mel_bins": 16, "frequency_stride": 4, "time_stride": 4},
    ),
    "clap": Row(
        "ClapModel",
        "input_ids=int64[5,7],input_features=float32[2,1,64,16]",
        {
            "audio_config": {
                "num_attention_heads": [2, 4],
                "depths": [1, 1],
                "window_size": 4,
                "patch_embeds_hidden_size": 16,
                "patch_size": 4,
                "patch_stride": [4, 4],
                "num_mel_bins": 16,
                "spec_size": 32,
                "hidden_size": 32,
                "enable_fusion": False,
            }
        },
        "logits_per_audio",
    ),
    "data2vec-audio": Row(
        "Data2VecAudioForCTC", WAVE, {**SPEECH, "conv_pos_kernel_size": 5, "num_conv_pos_embeddings": 2}
    ),
    "dac": Row(
        "DacModel",
        "input_values=float32[2,1,640]",
        {
            "encoder_hidden_size": 4,
            "decoder_hidden_size": 32,
            "hidden_size": 16,
            "codebook_dim": 4,
            "codebook_size": 16,
            "n_codebooks": 2,
            "downsampling_ratios": [2, 4],
            "upsampling_ratios": [4, 2],
        },
        "audio_values",
    ),
    "encodec": Row(
        "EncodecModel",
        "input_values=float32[2,1,640]",
        {"num_filters": 4, "hidden_size": 16, "codebook_dim": 16, "codebook_size": 16, "upsampling_ratios": [4, 2]},
        "audio_values",
    ),
    "hubert": Row("HubertForCTC", WAVE, SPEECH),
    "parakeet_encoder": Row(
        "ParakeetEncoder", "input_features=float32[2,24,16]", {"num_mel_bins": 16, "subsampling_conv_channels": 12}, ""
    ),
    "sew": Row("SEWForCTC", WAVE, {**SPEECH, "squeeze_factor": 2}),
    "unispeech": Row("UniSpeechForCTC", WAVE, SPEECH),
    "wav2vec2": Row("Wav2Vec2ForCTC", WAVE, SPEECH),
    "wav2vec2-bert": Row(
        "Wav2Vec2BertForCTC",
        "input_features=float32[2,24,16]",
        {
            "feature_projection_input_dim": 16,
            "position_embeddings_type": "relative_key",
            "left_max_position_embeddings": 5,
            "right_max_position_embeddings": 3,
            "conv_depthwise_kernel_size": 5,
        },
    ),
    "wav2vec2-conformer": Row(
        "Wav2Vec2ConformerForCTC",
        WAVE,
        {**SPEECH, "position_embeddings_type": "relative", "conv_depthwise_kernel_size": 5},
    ),
    "wavlm": Row("WavLMForCTC", WAVE, SPEECH),
    # time series
    "patchtsmixer": Row(
        "PatchTSMixerForPrediction",
        "past_values=float32[2,32,3]",
        {
            "context_length": 32,
            "patch_length": 8,
            "patch_stride": 8,
            "num_input_channels": 3,
            "prediction_length": 4,
            "d_model": 16,
            "num_parallel_samples": 1,
        },
        "prediction_outputs",
    ),
    "patchtst": Row(
        "PatchTSTForPrediction",
        "past_values=float32[2,32,3]",
        {
            "context_length": 32,
            "patch_length": 8,
            "patch_stride": 8,
            "num_input_channels": 3,
            "prediction_length": 4,
            "use_cls_token": False,
            "loss": "mse",
        },
        "prediction_outputs",
    ),
}
