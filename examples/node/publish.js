// Starts a workflow, hears where it goes, and answers its question: node publish.js post_7 "Hello"
// DATABASE_URL says where the database is. A worker runs beside it: outbox worker --app pipeline:posts
const { Client } = require("pg");

const [entity, content] = process.argv.slice(2);

async function main() {
  const db = new Client({ connectionString: process.env.DATABASE_URL });
  await db.connect();

  let ended;
  const done = new Promise((resolve) => (ended = resolve));
  const heard = async ({ payload }) => {
    const told = JSON.parse(payload); // { pipeline, entity_id, status, version }
    if (told.pipeline !== "posts" || told.entity_id !== entity) return;
    console.log(told.status);
    if (told.status === "WAITING") {
      await db.query("SELECT outbox.decide('posts', $1, 'approve', 'node')", [entity]);
    } else {
      ended();
    }
  };
  db.on("notification", (notice) => heard(notice).catch(fail));
  await db.query('LISTEN "outbox.status"'); // first, so that nothing is missed

  try {
    const { rows } = await db.query(
      "SELECT id, status, created FROM outbox.submit('posts', $1, $2, by => 'node')",
      [entity, JSON.stringify({ content })],
    );
    console.log(rows[0].created ? "submitted" : `it is there already, in ${rows[0].status}`);
    if (rows[0].created) await done;
  } finally {
    await db.end();
  }
}

function fail(error) {
  // What Outbox refuses has a code of its own, and its data as JSON.
  console.error(error.code?.startsWith("OB") ? `${error.code} ${error.detail}` : error);
  process.exit(1);
}

main().catch(fail);
