from hub_model import Screener

screener = Screener.from_pretrained("ct")  # or "xray", a hub folder, or a Hub id
finding = screener.screen("slice.png")
print(finding)
