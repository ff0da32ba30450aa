SERVER=http://127.0.0.1:7860/gradio_api
FILE=$(curl -s -F "files=@slice.png" $SERVER/upload | tr -d '[]"')
EVENT=$(curl -s $SERVER/call/screen -H "Content-Type: application/json" -d '{"data": [
  {"path": "'"$FILE"'", "meta": {"_type": "gradio.FileData"}}, "ct", "sensitivity"]}' | cut -d'"' -f4)
curl -s $SERVER/call/screen/$EVENT
