def report(results):
    return ""


def plot(results, folder):
    return {}
