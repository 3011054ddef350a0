"""Known fields of OpenAI's and vLLM's requests that are refused, with the reason."""

REFUSED = {
    "allowed_token_ids": "use logit_bias or structured_outputs to constrain tokens",
    "audio": "the models generate text only",
    "bad_words": "use logit_bias to forbid tokens",
    "chat_template": "the server uses the model's own template; pass variables to it by chat_template_kwargs",
    "context_management": "the client decides what to omit from a long conversation",
    "detokenize": "answers are always text",
    "documents": "put them into messages",
    "function_call": "deprecated by OpenAI; use tool_choice",
    "functions": "deprecated by OpenAI; use tools",
    "guided_decoding_backend": "the only backend is llguidance",
    "guided_whitespace_pattern": "JSON is generated without optional white space",
    "include_stop_str_in_output": "the output always ends before a stop string",
    "kv_transfer_params": "KV blocks are not transferred between engines",
    "length_penalty": "beam search is not supported",
    "logits_processors": "custom code is not supported",
    "mm_processor_kwargs": "images are forwarded unchanged",
    "moderation": "moderation is not supported",
    "priority": "the scheduler derives priorities from dependencies; use semantic.objective",
    "prompt_logprobs": "log probabilities of prompts are not computed",
    "return_tokens_as_token_ids": "tokens are returned as text and bytes",
    "truncate_prompt_tokens": "a prompt that is too long is refused; shorten it in the client",
    "use_beam_search": "beam search is not supported",
    "vllm_xargs": "custom arguments are not supported",
    "web_search_options": "web search is not supported",
}
"""Reasons by field. An error's message contains the reason."""
