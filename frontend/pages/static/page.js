// The page's three parts; each finds its own elements.
import { startClients } from "./clients.js";
import { startLive } from "./live.js";
import { startSimilarity } from "./similarity.js";

startSimilarity();
const clients = startClients();
startLive({ onModel: clients.setModel });
