#!/bin/sh
# The chain of examples/chain.py with curl. The second call is sent before the first has an answer.
set -eu
url=${OPENAI_BASE_URL:-http://127.0.0.1:8000/v1}
session=chain-$$

ask() { # output, prompt
    curl -sS "$url/chat/completions" \
        -H 'Content-Type: application/json' -H "Authorization: Bearer ${OPENAI_API_KEY:-none}" \
        -H "X-Semantic-Session: $session" \
        -d "{\"model\": \"SmolLM2-135M-Instruct\", \"max_tokens\": 60, \"temperature\": 0,
             \"messages\": [{\"role\": \"user\", \"content\": \"$2\"}],
             \"semantic\": {\"output\": \"$1\", \"defer\": true}}"
    echo
}

ask points "Write three short points about why bees matter."
ask sentence "Say this in one sentence: <<points>>"

# Wait for the value.
curl -sS "$url/sessions/$session/variables/sentence?wait=true" -H "Authorization: Bearer ${OPENAI_API_KEY:-none}"
echo
