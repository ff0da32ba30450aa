from gradio_client import Client, handle_file

client = Client("http://127.0.0.1:7860")
answer = client.predict(
    file=handle_file("slice.png"),
    kind="ct",
    operating_point="sensitivity",
    api_name="/screen",
)
print(answer["decision"], answer["probability"], answer["reasons"])
